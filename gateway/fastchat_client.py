"""Drives a worker that speaks FastChat's wire as if it were one of ours.

It asks the worker for its conversation template and context length once, renders the prompt, and
turns cumulative texts into deltas. What the wire cannot carry is refused by name.
"""

from __future__ import annotations

import asyncio
import sys
from array import array
from base64 import b64encode
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any, Final, TypeVar

from pydantic import BaseModel
from pydantic_core import from_json, to_json

from gateway.merge import merged
from gateway.worker_client import Question, WorkerHttp
from protocol.conversation import Conversation, from_messages, render
from protocol.errors import ErrorCode, TriremeError, quoted
from protocol.fastchat import GenerateParams
from protocol.fleet import WorkerRecord
from protocol.framing import NUL, FrameSplitter
from protocol.generation import (
    MAX_TOKENS,
    Delta,
    Done,
    EmbedRequest,
    EmbedResponse,
    Event,
    FinishReason,
    GenerateRequest,
    Prompt,
    SamplingParams,
    Started,
    TokenizeRequest,
    TokenLogprob,
)

CONTROL_TIMEOUT_S: Final = 10.0
UNKNOWN_CONTEXT: Final = 2048
"""What FastChat itself takes when a model does not say."""

_PLAIN: Final = SamplingParams()

_Answer = TypeVar("_Answer", bound=BaseModel)


def _differs(name: str, request: GenerateRequest) -> bool:
    return bool(getattr(request.sampling, name) != getattr(_PLAIN, name))


_NEEDS_NATIVE: Final[Mapping[str, Callable[[GenerateRequest], object]]] = MappingProxyType(
    {
        **{
            name: partial(_differs, name)
            for name in (
                "seed logit_bias min_p min_tokens ignore_eos include_stop_str_in_output "
                "skip_special_tokens prompt_logprobs length_penalty use_beam_search"
            ).split()
        },
        "top_logprobs": lambda one: one.messages is not None and one.sampling.logprobs,
        "prompt": lambda one: one.prompt_ids is not None,
        "add_special_tokens": lambda one: not one.add_special_tokens,
        "best_of": lambda one: one.sampling.num_sequences > one.sampling.n,
        "suffix": lambda one: one.suffix is not None,
        "priority": lambda one: one.priority,
        "tools": lambda one: one.tools,
        "chat_template_kwargs": lambda one: one.chat_template_kwargs,
        "reasoning_effort": lambda one: one.reasoning_effort not in (None, "none"),
        "thinking": lambda one: one.thinking,
    }
)
"""Whether a request has something in that field that FastChat's wire cannot carry."""

_STRUCTURED: Final = frozenset("response_format structured_outputs text output_config".split())
"""Fields of all dialects that hold an answer's text to something."""

# that a model is not to think can be said of FastChat's, which do not
NATIVE_ONLY: Final = frozenset(
    {*_NEEDS_NATIVE, *_STRUCTURED, "dimensions", "reasoning"} - {"thinking"}
)
TEXTS_ONLY: Final = frozenset({"prompt", "input"})
"""Fields of `NATIVE_ONLY` that FastChat's wire carries as texts, and not as token ids."""


def needs_native(request: GenerateRequest) -> str | None:
    """The first field of a request that FastChat's wire cannot carry, or None."""
    for name, asks in _NEEDS_NATIVE.items():
        if asks(request):
            return "logprobs" if name == "prompt_logprobs" and request.echo else name
    return request.structure.param if request.structure is not None else None


@dataclass(frozen=True, slots=True)
class _Model:
    template: Conversation
    context_length: int


@dataclass(slots=True)
class _Choice:
    """One of n streams: what was sent of it."""

    index: int
    sent: str = ""
    logprobs_sent: int = 0
    completion_tokens: int = 0
    finish_reason: FinishReason = "stop"


class FastChatClient:
    """Workers of fschat 0.2.36 and what is compatible with them."""

    def __init__(self, http: WorkerHttp) -> None:
        self._http = http
        self._models: dict[tuple[str, str], _Model] = {}

    def keep(self, addresses: Iterable[str]) -> None:
        """Forget what workers said that are no longer there."""
        kept = set(addresses)
        self._models = {key: one for key, one in self._models.items() if key[0] in kept}

    async def generate(
        self, worker: WorkerRecord, request: GenerateRequest
    ) -> AsyncGenerator[list[Event], None]:
        if field := needs_native(request):
            raise TriremeError(
                "unsupported_parameter",
                f"Unsupported parameter: '{field}' cannot be served by this model's worker.",
                param=field,
            )
        deadline = asyncio.get_running_loop().time() + (request.deadline_s or float("inf"))
        model = await self._model(worker, request.model)
        prompt = _rendered(request, model.template)
        prompt_tokens = await self._count(worker, request.model, prompt)
        body = _params(request, model, prompt, prompt_tokens)
        choices = [_Choice(index) for index in range(request.sampling.n)]
        streams = [self._deltas(worker, body, one, deadline) for one in choices]
        started = False
        async with aclosing(merged(streams, at_once=len(streams))) as deltas:
            async for delta in deltas:
                if not started:  # a worker's fault shows in its first frame, before any status
                    yield [Started(prompt_tokens, worker.instance_id, "")]
                    if request.echo:
                        yield [Prompt(ids=[], text=prompt)]
                    started = True
                so_far = sum(choice.completion_tokens for choice in choices)
                yield [replace(delta, generated=so_far)]
        yield [Done(prompt_tokens, sum(choice.completion_tokens for choice in choices))]

    async def embed(
        self, worker: WorkerRecord, request: EmbedRequest, timeout_s: float
    ) -> EmbedResponse:
        texts = [one for one in request.inputs if isinstance(one, str)]
        field = "input" if len(texts) < len(request.inputs) else "dimensions"
        if field == "input" or request.dimensions is not None:
            message = f"Unsupported parameter: '{field}' cannot be served by this model's worker."
            raise TriremeError("unsupported_parameter", message, param=field)
        body = to_json({"model": request.model, "input": texts})
        answer = _read(await self._http.call(worker, "/worker_get_embeddings", body, timeout_s))
        vectors: list[list[float]] = answer["embedding"]
        return EmbedResponse(
            embeddings_b64=[b64encode(_float32(vector)).decode() for vector in vectors],
            dimensions=len(vectors[0]),
            prompt_tokens=_number(answer.get("token_num")),
        )

    async def count(
        self, worker: WorkerRecord, request: TokenizeRequest, timeout_s: float
    ) -> tuple[int, int]:
        model = await self._model(worker, request.model)
        if request.tools:
            message = "Unsupported parameter: 'tools' cannot be served by this model's worker."
            raise TriremeError("unsupported_parameter", message, param="tools")
        prompt = _rendered(request, model.template)
        tokens = await self._count(worker, request.model, prompt)
        return tokens, model.context_length

    async def call(
        self, worker: WorkerRecord, request: Question, answer: type[_Answer], timeout_s: float
    ) -> _Answer:
        message = (
            f"The worker of the model `{quoted(request.model)}` gives no tokens and no scores."
        )
        raise TriremeError("unsupported_by_model", message, param="model")

    async def _model(self, worker: WorkerRecord, name: str) -> _Model:
        known = self._models.get((worker.address, name))
        if known is not None:
            return known
        body = to_json({"model": name})
        conv, details = await asyncio.gather(
            self._http.call(worker, "/worker_get_conv_template", body, CONTROL_TIMEOUT_S),
            self._http.call(worker, "/model_details", body, CONTROL_TIMEOUT_S),
        )
        try:
            template = Conversation.from_wire(_read(conv)["conv"])
        except (ValueError, KeyError, TypeError) as error:
            message = "The worker's conversation template is malformed."
            raise TriremeError("internal_error", message) from error
        context_length = int(_read(details).get("context_length") or UNKNOWN_CONTEXT)
        model = _Model(template, context_length)
        self._models[worker.address, name] = model
        return model

    async def _count(self, worker: WorkerRecord, model: str, prompt: str) -> int:
        body = to_json({"model": model, "prompt": prompt})
        answer = await self._http.call(worker, "/count_token", body, CONTROL_TIMEOUT_S)
        return _number(_read(answer).get("count"))

    async def _deltas(
        self,
        worker: WorkerRecord,
        body: bytes,
        choice: _Choice,
        deadline: float,
    ) -> AsyncGenerator[Delta, None]:
        """One choice; its last delta, which has the finish reason, comes when the stream ends."""
        http, splitter = self._http, FrameSplitter(NUL)
        frame: dict[str, Any] | None = None
        opened = http.open(worker, "/worker_generate_stream", body, float("inf"), deadline)
        with await opened as reply:
            async for chunk in reply:
                for raw in splitter.feed(chunk):
                    frame = _read(raw)
                    delta = _delta(choice, frame, stable=True)
                    if delta is not None:
                        yield delta
        if frame is None or splitter.pending:
            raise TriremeError("worker_lost", "The worker's answer ended early.")
        last = _delta(choice, frame, stable=False) or Delta(choice.index, 0, [], "")
        yield replace(last, finish_reason=choice.finish_reason)


def _rendered(request: GenerateRequest | TokenizeRequest, template: Conversation) -> str:
    if request.messages is None:
        return request.prompt or ""
    roles = {"developer": "system"}
    messages = [{**m, "role": roles.get(m["role"], m["role"])} for m in request.messages]
    try:
        conv = from_messages(
            template, messages, add_generation_prompt=request.add_generation_prompt
        )
    except ValueError as error:
        raise TriremeError("invalid_value", str(error), param="messages") from error
    return render(conv, open_last=request.continue_final_message)


def _params(request: GenerateRequest, model: _Model, prompt: str, prompt_tokens: int) -> bytes:
    """The body of /worker_generate_stream, as FastChat's own gateway would send it."""
    sampling = request.sampling
    left = model.context_length - prompt_tokens
    if left <= 0:
        raise TriremeError(
            "context_length_exceeded",
            f"This model's maximum context length is {model.context_length} tokens. However, "
            f"your prompt resulted in {prompt_tokens} tokens. Please reduce its length.",
            param="messages" if request.messages is not None else "prompt",
        )
    conv = model.template if request.conv_stops else None
    stops = [*sampling.stop, *(conv.stops if conv else ())]
    stop_ids = [*sampling.stop_token_ids, *((conv.stop_token_ids or ()) if conv else ())]
    params = GenerateParams(
        model=request.model,
        prompt=prompt,
        temperature=sampling.temperature,
        repetition_penalty=sampling.repetition_penalty,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        max_new_tokens=min(left, sampling.max_tokens or left),
        logprobs=sampling.logprobs,
        echo=False,
        stop=list(dict.fromkeys(stops)),
        stop_token_ids=list(dict.fromkeys(stop_ids)),
    )
    return params.model_dump_json(exclude={"best_of", "use_beam_search", "seed", "images"}).encode()


def _delta(choice: _Choice, frame: dict[str, Any], *, stable: bool) -> Delta | None:
    """What a cumulative frame adds; while it is `stable` only, half a character waits."""
    text = str(frame.get("text") or "")
    usage = frame.get("usage") or {}
    choice.completion_tokens = _number(usage.get("completion_tokens")) or choice.completion_tokens
    choice.finish_reason = "length" if frame.get("finish_reason") == "length" else "stop"
    if stable:
        text = text.rstrip("\ufffd")
    new = text[len(choice.sent) :] if len(text) > len(choice.sent) else ""
    choice.sent += new
    logprobs = _logprobs(frame.get("logprobs"), choice)
    if not new and not logprobs:
        return None
    return Delta(choice.index, 0, [], new, logprobs)


def _logprobs(arrays: dict[str, Any] | None, choice: _Choice) -> list[TokenLogprob] | None:
    """The entries of the cumulative arrays that were not sent yet."""
    if not arrays:
        return None
    start = choice.logprobs_sent
    tokens: list[str] = arrays["tokens"][start:]
    choice.logprobs_sent += len(tokens)
    values: list[float | None] = arrays["token_logprobs"][start:]
    tops = (arrays.get("top_logprobs") or [])[start:] or [None] * len(tokens)
    return [
        _logprob(token, value, [_logprob(t, lp, []) for t, lp in (top or {}).items()])
        for token, value, top in zip(tokens, values, tops, strict=False)
    ]


def _logprob(token: str, value: float | None, top: list[TokenLogprob]) -> TokenLogprob:
    return TokenLogprob(0, token, list(token.encode("utf-8", "replace")), value, top)


def _read(body: bytes) -> dict[str, Any]:
    """A worker's JSON object; raises the error that it carries."""
    try:
        fields = from_json(body)
        code = int(fields.get("error_code") or 0)
    except (ValueError, TypeError, AttributeError) as error:
        raise TriremeError("worker_lost", "The worker's answer is malformed.") from error
    if code == ErrorCode.CUDA_OUT_OF_MEMORY:
        raise TriremeError("out_of_memory", "The worker ran out of memory.")
    if code:
        raise TriremeError("internal_error", "The worker failed to answer.")
    return dict(fields)


def _number(value: Any) -> int:
    """A count of tokens; none is 0."""
    try:
        number = int(value or 0)
    except (ValueError, TypeError, OverflowError):
        number = -1
    if not 0 <= number <= MAX_TOKENS:
        raise TriremeError("worker_lost", "The worker's answer is malformed.")
    return number


def _float32(vector: list[float]) -> bytes:
    numbers = array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()
