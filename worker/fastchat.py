"""FastChat 0.2.36's worker routes, for its gateway, its clients and its Gradio server.

Same paths, fields and frames; its mistakes are mended: usage is exact, the first stop by position
wins, penalties count, a client that leaves frees its slot, `max_new_tokens` is cut to the room that
the prompt leaves instead of the prompt being cut.
"""

from __future__ import annotations

import base64
from array import array
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

import orjson
import shortuuid
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from protocol.errors import TriremeError
from protocol.fastchat import (
    NETWORK_ERROR_TEXT,
    CountToken,
    GenerateParams,
    GetEmbeddings,
    WorkerStatus,
)
from protocol.generation import (
    Delta,
    Done,
    EmbedRequest,
    Event,
    Failed,
    GenerateRequest,
    Prompt,
    SamplingParams,
    Started,
    TokenizeRequest,
    TokenLogprob,
)
from trireme.service.control import invalid, parse_body
from trireme.service.openapi import body_of, bytes_of
from worker.checks import Manner
from worker.edge import MAX_BODY_BYTES, streamed, while_connected
from worker.embed_service import EmbedService
from worker.runtime import Ready, Runtime
from worker.service import Service

FRAMES: Final = "application/octet-stream"
BODIES = (GenerateParams, CountToken, GetEmbeddings)
"""Schemas of the routes' bodies, for the OpenAPI document."""

_DEFAULT_MAX_NEW_TOKENS: Final = 256
_MAX_LOGPROBS: Final = 20

Frame = dict[str, Any]


def fastchat_router(service: Service, embeds: EmbedService, runtime: Runtime) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["fastchat"])
    served = runtime.settings.served_names[0]

    async def frames(
        params: GenerateParams, *, whole: bool = False
    ) -> AsyncGenerator[list[Frame], None]:
        fold = _Fold(echo=params.echo is not False)
        try:
            request = _request(params, served, whole)
        except TriremeError as error:
            yield [error_frame(error)]
            return
        manner = Manner(cut_max_tokens=True, detached=not request.echo, resumable=False)
        async with aclosing(service.generate(request, manner)) as batches:
            async for events in batches:
                if found := [frame for event in events for frame in fold.frames(event)]:
                    yield found

    @router.post(
        "/worker_generate_stream",
        openapi_extra=body_of(GenerateParams),
        response_class=Response,
        responses={200: bytes_of(FRAMES, "JSON objects, each followed by a zero byte")},
    )
    async def generate_stream(request: Request) -> Response:
        params = await parse_body(request, GenerateParams, MAX_BODY_BYTES)
        return streamed(_framed(frames(params)), FRAMES)

    @router.post("/worker_generate", openapi_extra=body_of(GenerateParams))
    async def generate(request: Request) -> Response:
        params = await parse_body(request, GenerateParams, MAX_BODY_BYTES)

        async def last() -> Frame:
            latest: Frame = {}
            async with aclosing(frames(params, whole=True)) as each:
                async for found in each:
                    latest = found[-1]
            return latest

        return JSONResponse(await while_connected(request, last()))

    @router.post("/worker_get_embeddings", openapi_extra=body_of(GetEmbeddings))
    async def get_embeddings(request: Request) -> Response:
        params = await parse_body(request, GetEmbeddings, MAX_BODY_BYTES)
        try:
            answer = await while_connected(request, _embeddings(params, served, embeds))
        except TriremeError as error:
            return JSONResponse(error_frame(error))
        return JSONResponse(answer)

    @router.post("/worker_get_status")
    async def get_status() -> WorkerStatus:
        return status(runtime)

    @router.post("/count_token", openapi_extra=body_of(CountToken))
    async def count_token(request: Request) -> Response:
        params = await parse_body(request, CountToken, MAX_BODY_BYTES)
        try:
            found = await service.tokenize(TokenizeRequest(model=served, prompt=params.prompt))
        except TriremeError as error:
            return JSONResponse(error_frame(error))
        return JSONResponse({"count": len(found.ids), "error_code": 0})

    @router.post("/worker_get_conv_template")
    async def get_conv_template() -> dict[str, Any]:
        return {"conv": _ready(runtime, served).text.template.conversation.to_wire()}

    @router.post("/model_details")
    async def model_details() -> dict[str, int]:
        return {"context_length": _ready(runtime, served).info.context_length}

    return router


def status(runtime: Runtime) -> WorkerStatus:
    """What `/worker_get_status` and FastChat's registration say."""
    load = runtime.load()
    queued = runtime.ready.admission.queued if runtime.ready else 0
    return WorkerStatus(
        model_names=list(runtime.settings.served_names),
        speed=1,
        queue_length=load.running + load.waiting + queued,
    )


def error_frame(error: TriremeError) -> Frame:
    """An error as FastChat's clients read it."""
    number = int(error.spec.number)
    text = f"{NETWORK_ERROR_TEXT}\n\n({error.message})" if number >= 50000 else error.message
    return {"text": text, "error_code": number}


def _ready(runtime: Runtime, model: str) -> Ready:
    return runtime.require(model)


async def _framed(
    frames: AsyncGenerator[list[Frame], None],
) -> AsyncGenerator[bytes, None]:
    async with aclosing(frames):
        async for found in frames:
            yield b"".join(orjson.dumps(frame) + b"\0" for frame in found)


# ---- generation: parameters in, cumulative frames out -------------------------------------------


def _request(params: GenerateParams, served: str, whole: bool) -> GenerateRequest:
    """The native request; nulls mean FastChat's defaults.

    Raises:
        TriremeError: a value out of range.
    """
    if params.images:
        raise TriremeError("unsupported_by_model", "This model takes no images.", param="images")
    echo = params.echo is not False
    logprobs = None if params.logprobs is None else max(0, min(params.logprobs, _MAX_LOGPROBS))
    stop = [params.stop] if isinstance(params.stop, str) else params.stop or []
    try:
        sampling = SamplingParams(
            max_tokens=_or(params.max_new_tokens, _DEFAULT_MAX_NEW_TOKENS),
            temperature=_or(params.temperature, 1.0),
            repetition_penalty=_or(params.repetition_penalty, 1.0),
            top_p=_or(params.top_p, 1.0),
            top_k=max(-1, _or(params.top_k, -1)),
            presence_penalty=_or(params.presence_penalty, 0.0),
            frequency_penalty=_or(params.frequency_penalty, 0.0),
            stop=[text for text in stop if text],
            stop_token_ids=params.stop_token_ids or [],
            seed=params.seed,
            best_of=params.best_of,
            use_beam_search=bool(params.use_beam_search),
            logprobs=logprobs,
            prompt_logprobs=logprobs if echo else None,
        )
    except ValidationError as error:
        raise invalid(error) from error
    return GenerateRequest(
        request_id=f"fastchat-{shortuuid.uuid()}",
        model=served,
        prompt=params.prompt,
        sampling=sampling,
        echo=echo,
        whole=whole,
    )


class Logprobs:
    """The four lists of FastChat's `LogProbs`; the first prompt token has null."""

    def __init__(self) -> None:
        self._at = 0
        self.lists: dict[str, list[Any]] = {
            "text_offset": [],
            "tokens": [],
            "token_logprobs": [],
            "top_logprobs": [],
        }

    def add(self, one: TokenLogprob) -> None:
        """Append a token."""
        top = None if one.logprob is None else {each.token: each.logprob for each in one.top}
        row = (self._at, one.token, one.logprob, top)
        for column, value in zip(self.lists.values(), row, strict=True):
            column.append(value)
        self._at += len(one.token)


@dataclass
class _Fold:
    """Folds events into frames with cumulative text, log probabilities and exact usage."""

    echo: bool
    text: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: str | None = None
    logprobs: Logprobs | None = None

    def frames(self, event: Event) -> list[Frame]:
        """The frames that an event gives: two at the end, as FastChat sends them."""
        match event:
            case Started():
                self.prompt_tokens = event.prompt_tokens
            case Prompt() if self.echo:
                self.text += event.text
                self._extend(event.logprobs)
            case Delta():
                self.text += event.text
                self.completion_tokens += len(event.ids)
                self._extend(event.logprobs)
                self.finish_reason = event.finish_reason
                return [self._frame(None)]
            case Done():
                return [self._frame(self.finish_reason)]
            case Failed():
                return [error_frame(event.error())]
        return []

    def _extend(self, more: list[TokenLogprob] | None) -> None:
        if more is None:
            return
        self.logprobs = self.logprobs or Logprobs()
        for one in more:
            self.logprobs.add(one)

    def _frame(self, finish_reason: str | None) -> Frame:
        frame: Frame = {
            "text": self.text,
            "error_code": 0,
            "usage": {
                "prompt_tokens": self.prompt_tokens,
                "completion_tokens": self.completion_tokens,
                "total_tokens": self.prompt_tokens + self.completion_tokens,
            },
            "finish_reason": finish_reason,
        }
        if self.logprobs is not None:
            frame["logprobs"] = self.logprobs.lists
        return frame


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


# ---- embeddings ---------------------------------------------------------------------------------


async def _embeddings(params: GetEmbeddings, served: str, embeds: EmbedService) -> dict[str, Any]:
    request = EmbedRequest(
        request_id=f"fastchat-{shortuuid.uuid()}", model=served, inputs=[*params.input]
    )
    answer = await embeds.embed(request, resumable=False)
    wanted: list[Any] = [*answer.embeddings_b64]
    if params.encoding_format != "base64":
        wanted = [array("f", base64.b64decode(text)).tolist() for text in wanted]
    return {"embedding": wanted, "token_num": answer.prompt_tokens}
