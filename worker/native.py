"""Native routes: generation as a stream of events, embeddings, scores, token ids, the own record.

POST /native/generate   `GenerateRequest` → one event a line (`protocol/generation.py`)
POST /native/embed      `EmbedRequest` → `EmbedResponse`
POST /native/score      `ScoreRequest` → `ScoreResponse`
POST /native/tokenize   `TokenizeRequest` → `TokenizeResponse`
POST /native/detokenize `DetokenizeRequest` → `DetokenizeResponse`
GET  /native/describe   `WorkerRecord`
POST /native/drain      `DrainRequest` → `DrainStatus`: begins a drain as SIGTERM does

A request that is refused before it starts is answered by the error's HTTP status, not by a stream.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from fastapi import APIRouter, Request, Response

from protocol.errors import TriremeError, quoted
from protocol.fleet import DrainRequest, DrainStatus, WorkerRecord
from protocol.framing import NATIVE_PING, NATIVE_PING_S
from protocol.generation import (
    DetokenizeRequest,
    DetokenizeResponse,
    EmbedRequest,
    EmbedResponse,
    Event,
    Failed,
    GenerateRequest,
    ScoreRequest,
    ScoreResponse,
    TokenizeRequest,
    TokenizeResponse,
    encode_event,
)
from trireme.service.control import parse_body
from trireme.service.logs import request_id
from trireme.service.openapi import body_of, bytes_of
from worker.edge import MAX_BODY_BYTES, streamed, while_connected
from worker.embed_service import EmbedService
from worker.service import Service

NDJSON = "application/x-ndjson"
BODIES = (
    GenerateRequest,
    EmbedRequest,
    ScoreRequest,
    TokenizeRequest,
    DetokenizeRequest,
    DrainRequest,
)
"""Schemas of the routes' bodies, for the OpenAPI document."""


def native_router(
    service: Service,
    embeds: EmbedService,
    record: Callable[[], WorkerRecord],
    drain: Callable[[str, float | None], DrainStatus],
) -> APIRouter:
    """The routes.

    Args:
        record: the worker's record as of now.
        drain: `Drain.ask`.
    """
    router = APIRouter(tags=["native"])

    @router.post(
        "/native/generate",
        openapi_extra=body_of(GenerateRequest),
        response_class=Response,
        responses={200: bytes_of(NDJSON, "one event a line")},
    )
    async def generate(request: Request) -> Response:
        body = await parse_body(request, GenerateRequest, MAX_BODY_BYTES)
        request_id.set(body.request_id)
        batches = service.generate(body)
        first = await anext(batches)
        if isinstance(first[0], Failed):
            await batches.aclose()
            raise first[0].error()
        return streamed(_lines(first, batches), NDJSON, ping=NATIVE_PING, ping_s=NATIVE_PING_S)

    @router.post("/native/embed", openapi_extra=body_of(EmbedRequest), response_model=EmbedResponse)
    async def embed(request: Request) -> Response:
        body = await parse_body(request, EmbedRequest, MAX_BODY_BYTES)
        request_id.set(body.request_id)
        answer = await while_connected(request, embeds.embed(body))
        return Response(answer.model_dump_json(), media_type="application/json")

    @router.post("/native/score", openapi_extra=body_of(ScoreRequest), response_model=ScoreResponse)
    async def score(request: Request) -> Response:
        body = await parse_body(request, ScoreRequest, MAX_BODY_BYTES)
        request_id.set(body.request_id)
        answer = await while_connected(request, embeds.score(body))
        return Response(answer.model_dump_json(), media_type="application/json")

    @router.post(
        "/native/tokenize",
        openapi_extra=body_of(TokenizeRequest),
        response_model=TokenizeResponse,
    )
    async def tokenize(request: Request) -> Response:
        answer = await service.tokenize(await parse_body(request, TokenizeRequest, MAX_BODY_BYTES))
        return Response(answer.model_dump_json(exclude_none=True), media_type="application/json")

    @router.post(
        "/native/detokenize",
        openapi_extra=body_of(DetokenizeRequest),
        response_model=DetokenizeResponse,
    )
    async def detokenize(request: Request) -> Response:
        body = await parse_body(request, DetokenizeRequest, MAX_BODY_BYTES)
        answer = await service.detokenize(body)
        return Response(answer.model_dump_json(), media_type="application/json")

    @router.get("/native/describe")
    async def describe() -> WorkerRecord:
        return record()

    @router.post(
        "/native/drain",
        status_code=202,
        openapi_extra=body_of(DrainRequest),
        response_model=DrainStatus,
    )
    async def begin_drain(request: Request) -> DrainStatus:
        # a page of a browser cannot send this type without asking, and nobody says yes here
        if (kind := request.headers.get("content-type", "")) != "application/json":
            message = f"The content type is {quoted(kind)}; it must be application/json."
            raise TriremeError("unsupported_content_type", message)
        body = await parse_body(request, DrainRequest)
        return drain(body.instance_id, body.grace_s)

    return router


async def _lines(
    first: list[Event], others: AsyncGenerator[list[Event], None]
) -> AsyncGenerator[bytes, None]:
    """Events on the wire, those that come together in one piece."""
    async with aclosing(others):
        yield b"".join(map(encode_event, first))
        async for events in others:
            yield b"".join(map(encode_event, events))
