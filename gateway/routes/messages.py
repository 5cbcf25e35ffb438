"""POST /v1/messages and /v1/messages/count_tokens. Errors have Anthropic's form here."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from fastapi import APIRouter, Request, Response

from gateway.answer import respond
from gateway.errors import error_response
from gateway.messages.render import MessageRenderer
from gateway.messages.translate import FIELD_NAMES, generate_request, tokenize_request
from gateway.metering import metered
from gateway.openapi import body_of
from gateway.state import admit, arrival_of, gateway_of, read
from gateway.translate import check_room, renamed
from protocol.anthropic import CountTokensRequest, MessagesRequest
from protocol.anthropic_answers import MessageAnswer, TokenCount
from protocol.errors import TriremeError
from trireme.service.ids import short_id
from trireme.service.streaming import Leash

router = APIRouter(tags=["messages"])


_EVENTS = "an event of Anthropic's, whose `type` is also its name; `message_stop` is the last"


@router.post(
    "/v1/messages",
    response_model=MessageAnswer,
    openapi_extra=body_of(MessagesRequest, streams=_EVENTS),
)
async def messages(request: Request) -> Response:
    """Answers a conversation, whole or as typed server-sent events."""
    return await _in_our_terms(request, _create(request))


@router.post(
    "/v1/messages/count_tokens",
    response_model=TokenCount,
    openapi_extra=body_of(CountTokensRequest),
)
async def count_tokens(request: Request) -> Response:
    """How many tokens the prompt of the same request has."""
    return await _in_our_terms(request, _count(request))


async def _create(request: Request) -> Response:
    asked = await read(request, MessagesRequest)
    arrival = arrival_of(request)
    admit(request, asked.model)
    record = gateway_of(request).view.snapshot.models.get(asked.model)
    check_room(asked.max_tokens, record, "max_tokens")
    message_id = f"msg_{short_id()}"
    generate = generate_request(
        asked,
        request_id=f"{arrival.request_id}:{message_id}",
        deadline_s=arrival.deadline_s,
        cache_salt=arrival.cache_salt,
    )
    renderer = MessageRenderer(message_id, asked, arrival.request_id)
    return await respond(request, [generate], renderer, arrival, stream=asked.stream)


async def _count(request: Request) -> Response:
    asked = await read(request, CountTokensRequest)
    arrival = arrival_of(request)
    admit(request, asked.model)
    gateway = gateway_of(request)
    with metered(gateway, arrival, asked.model, is_counted=False):
        async with Leash(request.scope):
            wanted = tokenize_request(asked)
            tokens, _ = await gateway.dispatcher.count(wanted, arrival.deadline_s, arrival.trail)
    found = TokenCount(input_tokens=tokens)
    return Response(found.model_dump_json(), media_type="application/json")


async def _in_our_terms(request: Request, answered: Coroutine[Any, Any, Response]) -> Response:
    """The answer, or its failure as this dialect has it."""
    try:
        return await answered
    except TriremeError as error:
        return error_response(renamed(error, FIELD_NAMES), scope=request.scope)
