"""What the routes share: built once by `gateway.app`, reached by `gateway_of(request)`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from time import perf_counter
from types import MappingProxyType
from typing import NamedTuple, TypeVar

from fastapi import Request
from pydantic import BaseModel

from gateway.body import parse, read_body
from gateway.config import GatewaySettings
from gateway.deadline import deadline_s
from gateway.dispatch import Dispatcher, not_found
from gateway.edge import header
from gateway.fleet_view import FleetView
from gateway.keys import ApiKey
from gateway.limits import Limiter
from gateway.metrics import GatewayMetrics
from gateway.responses.store import ResponseStore
from gateway.trail import Trail, Trails
from trireme.service.ledger_writer import Ledger

_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Gateway:
    """The parts of a running gateway.

    Attributes:
        responses: answers of the Responses API that later requests go on from.
        limiter: what callers may use.
        ledger: what they have used; None keeps none.
        created: unix seconds of the start, shown by the model cards.
        trails: which workers the last requests of this process went to.
        find_route: the report of one of them as JSON, of any of several processes; None for one
            that is not kept.
    """

    settings: GatewaySettings
    view: FleetView
    dispatcher: Dispatcher
    metrics: GatewayMetrics
    responses: ResponseStore
    limiter: Limiter
    ledger: Ledger | None
    created: int
    trails: Trails
    find_route: Callable[[str], Awaitable[str | None]]


class Arrival(NamedTuple):
    """What a request brings beside its body.

    Attributes:
        request_id: the client's or ours.
        caller: whose key it has.
        cache_salt: requests with the same one share cached beginnings of prompts.
        route: the path's pattern.
        deadline_s: seconds that the request may take.
        arrived_s: `perf_counter` seconds.
        trail: notes which workers it goes to.
    """

    request_id: str
    caller: ApiKey
    cache_salt: str
    route: str
    deadline_s: float
    arrived_s: float
    trail: Trail

    @property
    def tenant(self) -> str:
        """Tells keys apart without telling them; empty when there are none."""
        return self.caller.salt


def gateway_of(request: Request) -> Gateway:
    gateway: Gateway = request.scope["state"]["gateway"]
    return gateway


def caller_of(request: Request) -> ApiKey:
    """Whose key the request has; the authentication has let it pass."""
    caller: ApiKey = request.scope["state"]["caller"]
    return caller


def arrival_of(request: Request) -> Arrival:
    """Raises TriremeError for a malformed `x-request-timeout-ms`."""
    gateway = gateway_of(request)
    state = request.scope["state"]
    trail = state["trail"] = Trail(state["request_id"], gateway.trails)
    caller = caller_of(request)
    return Arrival(
        request_id=state["request_id"],
        caller=caller,
        cache_salt="" if gateway.settings.share_prefix_cache else caller.salt,
        route=request.scope["route"].path,
        deadline_s=deadline_s(
            header(request.scope, b"x-request-timeout-ms"), gateway.settings.request_timeout_s
        ),
        arrived_s=perf_counter(),
        trail=trail,
    )


async def read(
    request: Request, model: type[_Model], defaults: Mapping[str, str] = MappingProxyType({})
) -> _Model:
    """The request's body as `model`.

    Args:
        defaults: fields taken where the body has none, or null.
    """
    settings = gateway_of(request).settings
    body = await read_body(request, settings.max_body_bytes)
    return parse(body, model, lenient=settings.lenient, defaults=defaults)


def admit(request: Request, model: str) -> None:
    """Check that the caller may use the model and that it can be served; from here on metrics may
    name it."""
    if not caller_of(request).may_use(model):
        raise not_found(model)
    gateway_of(request).dispatcher.check_model(model)
    request.scope["state"]["model"] = model
