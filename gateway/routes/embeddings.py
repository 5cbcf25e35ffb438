"""POST /v1/embeddings, and FastChat's /v1/engines/{model}/embeddings."""

from __future__ import annotations

import sys
from array import array
from base64 import b64decode

from fastapi import APIRouter, Request, Response

from gateway.metering import metered
from gateway.openapi import body_of
from gateway.state import admit, arrival_of, gateway_of, read
from gateway.translate import embed_request
from protocol.openai import EmbeddingObject, EmbeddingsRequest, EmbeddingsResponse, UsageInfo
from trireme.service.streaming import Leash

router = APIRouter(tags=["embeddings"])


@router.post(
    "/v1/embeddings",
    response_model=EmbeddingsResponse,
    openapi_extra=body_of(EmbeddingsRequest),
)
async def embeddings(request: Request) -> Response:
    """One vector for each input, as numbers or as base64 of little-endian float32."""
    return await _embed(request, await read(request, EmbeddingsRequest))


@router.post(
    "/v1/engines/{model:path}/embeddings",
    response_model=EmbeddingsResponse,
    openapi_extra=body_of(EmbeddingsRequest),
)
async def engine_embeddings(request: Request, model: str) -> Response:
    """The same, with the model in the path."""
    return await _embed(request, await read(request, EmbeddingsRequest, {"model": model}))


async def _embed(request: Request, asked: EmbeddingsRequest) -> Response:
    arrival = arrival_of(request)
    admit(request, asked.model)
    wanted = embed_request(asked, request_id=arrival.request_id, tenant=arrival.tenant)
    gateway = gateway_of(request)
    tokens = sum(1 + len(one) // 4 if isinstance(one, str) else len(one) for one in asked.input)
    with metered(gateway, arrival, asked.model, tokens) as usage:
        async with Leash(request.scope):
            found = await gateway.dispatcher.embed(wanted, arrival.deadline_s, arrival.trail)
        usage.tokens = found.prompt_tokens
    vectors = found.embeddings_b64
    answer = EmbeddingsResponse(
        object="list",
        data=[
            EmbeddingObject(
                object="embedding",
                embedding=vector if asked.encoding_format == "base64" else _floats(vector),
                index=index,
            )
            for index, vector in enumerate(vectors)
        ],
        model=asked.model,
        usage=UsageInfo(prompt_tokens=found.prompt_tokens, total_tokens=found.prompt_tokens),
    )
    return Response(answer.to_json(), media_type="application/json")


def _floats(vector: str) -> list[float]:
    numbers = array("f", b64decode(vector))
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tolist()
