"""Builds the worker's app: the one place where its objects are made and joined."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

from fastapi import FastAPI

from protocol import __version__
from trireme.service.auth import TokenSet
from trireme.service.control import (
    TokenGuard,
    described,
    failed,
    install_error_handlers,
)
from trireme.service.health import health_router
from trireme.service.openapi import describe
from trireme.service.server import ExitRequest
from trireme.service.shortcut import Shortcut, routes_of
from trireme.service.tier_app import TierApp
from worker import fastchat, native
from worker.config import Settings
from worker.drain import Drain
from worker.embed_service import EmbedService
from worker.metrics import Metrics
from worker.registration import Registrar, Reporter
from worker.runtime import Runtime
from worker.service import Service

ABOUT: Final = "One model, for gateways: the native wire, and FastChat's."


class WorkerApp(NamedTuple):
    """The app, and what to await after the first SIGTERM."""

    app: FastAPI
    drain: Callable[[], Awaitable[None]]
    runtime: Runtime


def create_app(settings: Settings, *, address: str, exit_request: ExitRequest) -> WorkerApp:
    """The worker.

    Args:
        address: the base URL that it registers.
        exit_request: how a model that cannot be loaded ends the process, and a drain begins.
    """
    runtime = Runtime(settings, exit_request)
    metrics = Metrics(settings.served_names[0], runtime)
    service, embeds = Service(runtime, metrics), EmbedService(runtime, metrics)
    reporter = Reporter(runtime, address)
    registrar = Registrar(
        () if settings.no_register else settings.controller_address,
        reporter,
        interval_s=settings.heartbeat_interval,
        cluster_token=settings.cluster_token,
    )
    runtime.subscribe(registrar.push)
    metrics.show_registrations(lambda: registrar.registered)
    drain = Drain(runtime, registrar, exit_request)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        runtime.start()
        registrar.start()
        try:
            yield
        finally:
            await registrar.close()
            await runtime.close()

    app = TierApp(title="Trireme worker", version=__version__, lifespan=lifespan)
    made = native.native_router(service, embeds, reporter.record, drain.ask)
    busy = routes_of(made, "/native/generate", "/native/embed", "/native/tokenize")
    app.add_edge(Shortcut, tier="worker", routes=busy, render=failed)
    app.add_edge(TokenGuard, tokens=TokenSet([settings.cluster_token]))
    install_error_handlers(app, "worker")
    app.include_router(health_router("worker", runtime.not_ready, metrics.registry))
    app.include_router(made)
    app.include_router(fastchat.fastchat_router(service, embeds, runtime))
    describe(app, described(ABOUT, (*native.BODIES, *fastchat.BODIES)))
    return WorkerApp(app, drain.run, runtime)
