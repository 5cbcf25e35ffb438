"""POST /tokenize and POST /detokenize, as vLLM has them."""

from __future__ import annotations

from typing import TypeVar

from fastapi import APIRouter, Request, Response

from gateway.metering import metered
from gateway.openapi import body_of
from gateway.state import admit, arrival_of, gateway_of, read
from gateway.translate import tokenize_request
from protocol.generation import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
)
from protocol.openai_responses import DetokenizationResponse, TokenizationResponse
from protocol.texts import DetokenizationRequest, TokenizationRequest
from trireme.service.streaming import Leash

_Answer = TypeVar("_Answer", TokenizeResponse, DetokenizeResponse)

router = APIRouter(tags=["tokens"])


@router.post(
    "/tokenize",
    response_model=TokenizationResponse,
    openapi_extra=body_of(TokenizationRequest),
)
async def tokenize(request: Request) -> Response:
    """The tokens of a prompt or of a conversation."""
    asked = await read(request, TokenizationRequest)
    wanted = tokenize_request(asked)
    found = await _ask(request, wanted, TokenizeResponse)
    answer = TokenizationResponse(
        count=len(found.ids),
        max_model_len=found.context_length,
        tokens=found.ids,
        token_strs=found.entries,
    )
    return Response(answer.to_json(), media_type="application/json")


@router.post(
    "/detokenize",
    response_model=DetokenizationResponse,
    openapi_extra=body_of(DetokenizationRequest),
)
async def detokenize(request: Request) -> Response:
    """The text of tokens."""
    asked = await read(request, DetokenizationRequest)
    wanted = DetokenizeRequest(model=asked.model, ids=asked.tokens)
    found = await _ask(request, wanted, DetokenizeResponse)
    return Response(
        DetokenizationResponse(prompt=found.text).to_json(), media_type="application/json"
    )


async def _ask(
    request: Request, wanted: TokenizeRequest | DetokenizeRequest, answer: type[_Answer]
) -> _Answer:
    """A worker's answer; it counts as a request, and costs no tokens."""
    gateway, arrival = gateway_of(request), arrival_of(request)
    admit(request, wanted.model)
    with metered(gateway, arrival, wanted.model, is_counted=False):
        async with Leash(request.scope):
            return await gateway.dispatcher.ask(wanted, answer, arrival.deadline_s, arrival.trail)
