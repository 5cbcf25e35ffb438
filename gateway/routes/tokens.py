"""POST /tokenize and POST /detokenize, as vLLM has them."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from gateway.openapi import body_of
from gateway.state import admit, arrival_of, gateway_of, read
from gateway.translate import tokenize_request
from protocol.generation import DetokenizeRequest, DetokenizeResponse, TokenizeResponse
from protocol.openai_responses import DetokenizationResponse, TokenizationResponse
from protocol.texts import DetokenizationRequest, TokenizationRequest
from trireme.service.streaming import Leash

router = APIRouter(tags=["tokens"])


@router.post(
    "/tokenize",
    response_model=TokenizationResponse,
    openapi_extra=body_of(TokenizationRequest),
)
async def tokenize(request: Request) -> Response:
    """The tokens of a prompt or of a conversation."""
    asked = await read(request, TokenizationRequest)
    arrival = arrival_of(request)
    admit(request, asked.model)
    dispatcher = gateway_of(request).dispatcher
    async with Leash(request.receive):
        found = await dispatcher.ask(
            tokenize_request(asked), TokenizeResponse, arrival.deadline_s, arrival.trail
        )
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
    arrival = arrival_of(request)
    admit(request, asked.model)
    wanted = DetokenizeRequest(model=asked.model, ids=asked.tokens)
    dispatcher = gateway_of(request).dispatcher
    async with Leash(request.receive):
        found = await dispatcher.ask(wanted, DetokenizeResponse, arrival.deadline_s, arrival.trail)
    return Response(
        DetokenizationResponse(prompt=found.text).to_json(), media_type="application/json"
    )
