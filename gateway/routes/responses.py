"""POST /v1/responses, and the responses that it stored."""

from __future__ import annotations

import time
from collections.abc import Callable
from time import monotonic
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic_core import from_json

from gateway.answer import respond
from gateway.blocks import encoded
from gateway.openapi import body_of
from gateway.responses.render import ResponseHead, ResponseRenderer
from gateway.responses.store import StoredResponse
from gateway.responses.stored_items import StoredItems
from gateway.responses.translate import FIELD_NAMES, generate_request, listed, resolved
from gateway.state import Gateway, admit, arrival_of, gateway_of, read
from gateway.translate import check_room, renamed
from protocol.create_response import CreateResponse
from protocol.errors import TriremeError, quoted
from protocol.response_items import Item
from protocol.response_object import DeletedResponse, InputItemList, ResponseObject
from trireme.service.ids import short_id

router = APIRouter(tags=["responses"])


_EVENTS = "an event of OpenAI's, whose `type` is also its name; `response.completed` is the last"


@router.post(
    "/v1/responses",
    response_model=ResponseObject,
    openapi_extra=body_of(CreateResponse, streams=_EVENTS),
)
async def create(request: Request) -> Response:
    """Answers a conversation, whole or as typed server-sent events."""
    asked = await read(request, CreateResponse)
    arrival = arrival_of(request)
    gateway = gateway_of(request)
    tenant = arrival.tenant
    admit(request, asked.model)
    record = gateway.view.snapshot.models.get(asked.model)
    check_room(asked.max_output_tokens, record, "max_output_tokens")
    stored = StoredItems(gateway.responses, tenant, gateway.settings.max_body_bytes)
    given = resolved(asked.items, stored.item)
    head = ResponseHead(f"resp_{short_id()}", int(time.time()), asked)
    try:
        generate = generate_request(
            asked,
            stored.before(asked.previous_response_id) + given,
            request_id=f"{arrival.request_id}:{head.id}",
            deadline_s=arrival.deadline_s,
            cache_salt=arrival.cache_salt,
        )
        keep = _keeper(gateway, tenant, asked, given)
        renderer = ResponseRenderer(head, now=time.time, finished=keep)
        return await respond(request, [generate], renderer, arrival, stream=asked.stream)
    except TriremeError as error:
        raise renamed(error, FIELD_NAMES) from None


@router.get("/v1/responses/{response_id}", response_model=ResponseObject)
async def retrieve(
    request: Request, response_id: str, stream: Literal["false"] = "false"
) -> Response:
    """A stored response."""
    return Response(_stored(request, response_id).response, media_type="application/json")


@router.delete("/v1/responses/{response_id}", response_model=DeletedResponse)
async def delete(request: Request, response_id: str) -> Response:
    """Forgets a stored response; those that went on from it cannot be gone on from any more."""
    tenant = arrival_of(request).tenant
    if not gateway_of(request).responses.delete(tenant, response_id, monotonic()):
        raise _not_found(response_id)
    deleted = DeletedResponse(id=response_id, object="response", deleted=True)
    return Response(deleted.model_dump_json(), media_type="application/json")


@router.get("/v1/responses/{response_id}/input_items", response_model=InputItemList)
async def input_items(
    request: Request,
    response_id: str,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
) -> Response:
    """The items of a stored response's own input, those before it in the conversation not."""
    items: list[dict[str, Any]] = from_json(_stored(request, response_id).input)
    if order == "desc":
        items.reverse()
    ids = [item["id"] for item in items]
    if after is not None and after not in ids:
        raise TriremeError("invalid_value", f"No item '{quoted(after)}' is there.", param="after")
    rest = items if after is None else items[ids.index(after) + 1 :]
    shown = rest[:limit]
    page = InputItemList(
        object="list",
        data=shown,
        first_id=shown[0]["id"] if shown else None,
        last_id=shown[-1]["id"] if shown else None,
        has_more=len(rest) > limit,
    )
    return Response(page.model_dump_json(), media_type="application/json")


def _stored(request: Request, response_id: str) -> StoredResponse:
    tenant = arrival_of(request).tenant
    found = gateway_of(request).responses.get(tenant, response_id, monotonic())
    if found is None:
        raise _not_found(response_id)
    return found


def _keeper(
    gateway: Gateway, tenant: str, asked: CreateResponse, given: list[Item]
) -> Callable[[dict[str, Any]], None]:
    """Stores a response when it is whole, unless it is not to be stored."""

    def keep(response: dict[str, Any]) -> None:
        if not asked.store:
            return
        items = [listed(item) for item in given]
        stored = StoredResponse(
            response["id"],
            asked.previous_response_id,
            encoded(items),
            encoded(response),
            tuple(item["id"] for item in [*items, *response["output"]]),
        )
        gateway.responses.put(tenant, stored, monotonic())

    return keep


def _not_found(response_id: str) -> TriremeError:
    message = f"Response with id '{quoted(response_id)}' not found."
    return TriremeError("response_not_found", message)
