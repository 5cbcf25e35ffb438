"""Builds the gateway: every object of it is made here, once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from secrets import token_hex
from time import monotonic
from typing import Final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic_core import ErrorDetails
from starlette.requests import ClientDisconnect
from starlette.types import Scope

from gateway.body import error_of
from gateway.breaker import Breakers
from gateway.buckets import Table
from gateway.config import GatewaySettings
from gateway.dispatch import Dispatcher
from gateway.drift import LOOK_EVERY_S, DriftWatch
from gateway.edge import (
    Authentication,
    Checks,
    CrossOrigin,
    Headers,
    RequestContext,
    check_headers,
    route_headers,
)
from gateway.errors import error_response, install_error_handlers
from gateway.fastchat_client import FastChatClient
from gateway.fleet_view import FleetView
from gateway.fleet_watch import FleetWatch
from gateway.http_client import HttpPool
from gateway.keys import KeyRing, anonymous, follow
from gateway.limits import LIMIT_HEADERS, Limiter
from gateway.metrics import UNKNOWN_MODEL, GatewayMetrics
from gateway.openapi import DESCRIBED
from gateway.operators import OperatorGuard, TwoDoors
from gateway.responses.store import ResponseStore
from gateway.routes import BUSY_ROUTES, ROUTERS
from gateway.routing import POLICIES
from gateway.state import Gateway
from gateway.trail import Trails
from gateway.worker_client import NativeClient, Timeouts, WorkerHttp, open_session
from protocol import __version__
from protocol.errors import TriremeError, quoted
from protocol.fleet import WorkerRecord
from trireme.service.auth import TokenSet
from trireme.service.catch_all import CatchAll
from trireme.service.health import HEALTH_PATHS, health_router
from trireme.service.ledger_writer import Ledger
from trireme.service.openapi import describe
from trireme.service.processes import Sibling
from trireme.service.scrapes import Shown, shown
from trireme.service.shortcut import Shortcut
from trireme.service.tier_app import TierApp

log = logging.getLogger(__name__)


FIRST_ANSWER_S: Final = 1.0
"""One of several processes waits so long for a controller before it takes requests."""


def create_app(
    settings: GatewaySettings,
    join: Callable[[Callable[[], Shown]], Sibling] | None = None,
    *,
    table: Table | None = None,
    usage_db: Path | None = None,
) -> FastAPI:
    """The gateway's ASGI app; `app.state.drain` is awaited before it stops.

    Args:
        join: for one of several processes: given what tells its metrics, the line to its parent.
        table: what callers have used of their limits, shared with the other processes.
        usage_db: the usage ledger; None keeps none.
    """
    view = FleetView(settings.controller_address)
    breakers = Breakers()
    metrics = GatewayMetrics()
    drift = DriftWatch(token_hex(8))
    metrics.show_fleet(
        lambda: view.snapshot,
        lambda: view.known_models(monotonic()),
        lambda: breakers.states(monotonic()),
        drift.drifts,
    )
    keys = KeyRing(settings.accepted_keys(), nobody=anonymous(settings.default_limits))
    limiter = Limiter(table or Table(), metrics.limited)
    ledger = Ledger(usage_db, settings.usage_days, metrics.unwritten) if usage_db else None
    trails = Trails()
    sibling = join(lambda: shown(metrics.registry)) if join is not None else None
    if sibling is not None:
        sibling.keeps(trails.report)
    draining = False

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Gateway]]:
        timeouts = Timeouts(
            settings.first_event_timeout_s, settings.stall_timeout_s, settings.silence_timeout_s
        )
        async with open_session() as session:

            def alive(worker: WorkerRecord) -> bool:
                return worker.instance_id in view.snapshot.workers

            headers = {"Content-Type": "application/json"}
            if settings.cluster_token:
                headers["Authorization"] = f"Bearer {settings.cluster_token}"
            pool = HttpPool(settings.connect_timeout_s, headers)
            http = WorkerHttp(pool, timeouts, alive)
            fastchat = FastChatClient(http)

            def changed() -> None:
                breakers.keep(view.snapshot.workers)
                fastchat.keep(worker.address for worker in view.snapshot.workers.values())
                dispatcher.fleet_changed()

            dispatcher = Dispatcher(
                view,
                {"native": NativeClient(http), "fastchat": fastchat},
                POLICIES[settings.routing],
                metrics,
                breakers=breakers,
                restart_wait_s=settings.restart_wait_s,
                drift=drift,
                rng=Random(),
            )
            responses = ResponseStore(
                settings.stored_responses,
                settings.stored_response_bytes,
                settings.stored_response_ttl_s,
            )
            gateway = app.state.gateway = Gateway(
                settings,
                view,
                dispatcher,
                metrics,
                responses,
                limiter,
                ledger,
                int(time.time()),
                trails,
                find_route,
            )
            watch = FleetWatch(
                view, settings.controller_address, session, settings.cluster_token, changed
            )

            def end_requests() -> None:
                dispatcher.stop(TriremeError("draining", "The gateway is shutting down."))
                pool.close()

            app.state.end_requests = end_requests
            watch.start()
            if ledger is not None:
                ledger.start()
            looking = asyncio.create_task(_look_for_ever(drift, view))
            following = asyncio.create_task(_follow_keys(settings, keys, view, metrics))
            try:
                if sibling is not None:
                    await watch.first_answer(FIRST_ANSWER_S)
                    await sibling.start()
                yield {"gateway": gateway}  # in the state of every request
            finally:
                if sibling is not None:
                    await sibling.stop()
                for task in (looking, following):
                    task.cancel()
                await asyncio.gather(looking, following, return_exceptions=True)
                await watch.stop()
                pool.close()
                if ledger is not None:
                    await asyncio.to_thread(ledger.close)

    async def find_route(request_id: str) -> str | None:
        found = trails.report(request_id)
        if found is None and sibling is not None:
            with contextlib.suppress(TimeoutError):
                return await sibling.find(request_id)
        return found

    def not_ready() -> str | None:
        if draining:
            return "draining"
        if view.snapshot.models:
            return None
        return "no model can be served" if view.snapshot.synced else "no controller has answered"

    async def drain() -> None:
        """Not ready from now on, but serving while load balancers notice; then no connection is
        taken any more, and what runs has its grace before it is told that this is the end."""
        nonlocal draining
        draining = True
        await asyncio.sleep(settings.drain_delay_s)
        asyncio.get_running_loop().call_later(settings.drain_grace_s, app.state.end_requests)

    def own_headers(scope: Scope) -> Headers:
        return [*route_headers(scope), *limiter.headers(scope)]

    def finished(scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unknown")
        state = scope["state"]
        code, caller = state.get("error_code", ""), state.get("caller")
        metrics.finished(route, state.get("model", UNKNOWN_MODEL), status, code, seconds)
        if log.isEnabledFor(logging.INFO) and scope["path"] not in HEALTH_PATHS:
            by = f" key={caller.name}" if caller is not None and caller.salt else ""
            told = f"{status} {code}".rstrip() + by
            path = quoted(scope["path"])
            log.info("%s %s %s %.0f ms", scope["method"], path, told, 1000 * seconds)

    app = TierApp(
        title="Trireme gateway", version=__version__, lifespan=lifespan, redirect_slashes=False
    )
    app.state.drain = drain
    app.include_router(
        health_router(
            "gateway", not_ready, metrics.registry, sibling.metrics if sibling is not None else None
        )
    )
    for router in ROUTERS:
        app.include_router(router)
    install_error_handlers(app)
    describe(app, DESCRIBED)

    @app.exception_handler(RequestValidationError)
    async def bad_parameter(request: Request, error: RequestValidationError) -> Response:
        first: ErrorDetails = error.errors()[0]
        first["loc"] = first["loc"][1:]  # without the word "query" or "path"
        return error_response(error_of(first), scope=request.scope)

    @app.exception_handler(ClientDisconnect)
    async def gone(_request: Request, _error: ClientDisconnect) -> Response:
        return Response(status_code=499)

    def failed(scope: Scope, error: TriremeError) -> Response:
        return error_response(error, scope=scope)

    app.add_middleware(CatchAll, tier="gateway", render=failed)
    # the last one added is the outermost
    app.add_edge(Shortcut, tier="gateway", routes=BUSY_ROUTES, render=failed)
    operators = OperatorGuard(TokenSet([settings.cluster_token]), has_keys=bool(keys))
    doors = TwoDoors(Authentication(keys), operators)
    app.add_edge(Checks, checks=(doors, check_headers))
    app.add_edge(
        CrossOrigin,
        allow_origins=settings.allowed_origins,
        allow_credentials=settings.allow_credentials,
        allow_methods=settings.allowed_methods,
        allow_headers=settings.allowed_headers,
        expose_headers=[
            "x-request-id",
            "request-id",
            "x-trireme-worker",
            "x-trireme-attempts",
            "retry-after",
            *LIMIT_HEADERS,
        ],
    )
    app.add_edge(RequestContext, headers=own_headers, finished=finished, closing=lambda: draining)
    return app


async def _look_for_ever(drift: DriftWatch, view: FleetView) -> None:
    """Until cancelled; a fleet that no controller tells of is no measure."""
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        if not view.snapshot.stale:
            unheard = {worker.instance_id for worker in view.suspects()}
            workers = view.snapshot.workers.items()
            drift.look(worker for id_, worker in workers if id_ not in unheard)


async def _follow_keys(
    settings: GatewaySettings, keys: KeyRing, view: FleetView, metrics: GatewayMetrics
) -> None:
    def served() -> set[str]:
        workers = view.snapshot.workers.values()
        return {model.name for worker in workers for model in worker.models}

    if settings.api_keys_file is not None:
        read, tell = settings.accepted_keys, metrics.keys_file
        await follow(settings.api_keys_file, read, keys, served, tell)
