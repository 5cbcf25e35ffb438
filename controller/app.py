"""Builds the controller's app: everything it consists of is put together here, once."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable
from typing import Final

from fastapi import FastAPI

from controller.config import ControllerSettings
from controller.fastchat import FASTCHAT_BODIES, fastchat_router
from controller.fleet import Fleet
from controller.native import FLEET, WORKERS, native_router
from controller.relay import Relay
from protocol import __version__
from protocol.fleet import WorkerRecord
from trireme.service.auth import TokenSet
from trireme.service.control import (
    TokenGuard,
    described,
    failed,
    install_error_handlers,
)
from trireme.service.health import health_router
from trireme.service.openapi import describe
from trireme.service.shortcut import Shortcut, routes_of
from trireme.service.tier_app import TierApp

ABOUT: Final = "The fleet's workers and their leases: the native wire, and FastChat's."


def create_app(
    settings: ControllerSettings,
    *,
    clock: Callable[[], float] = time.monotonic,
    rng: random.Random | None = None,
) -> FastAPI:
    """The controller's app. `app.state.drain` is to be awaited before it is stopped.

    Args:
        clock: seconds, monotonic; leases are measured with it.
        rng: draws the lottery; by default one seeded by the system.
    """
    fleet = Fleet(settings, clock=clock, rng=rng or random.Random())
    relay = Relay(settings.cluster_token, fleet.metrics)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        sweeper = asyncio.create_task(fleet.sweep_for_ever())
        try:
            yield
        finally:
            sweeper.cancel()
            await asyncio.gather(sweeper, return_exceptions=True)
            fleet.feed.close()
            await relay.close()

    async def drain() -> None:
        """Polls end at once; relayed streams go on until they end or the grace is over."""
        fleet.feed.close()

    app = TierApp(title="Trireme controller", version=__version__, lifespan=lifespan)
    app.state.drain = drain
    native = native_router(fleet)
    app.add_edge(
        Shortcut,
        tier="controller",
        routes=[
            *routes_of(native, FLEET),
            *routes_of(native, f"{WORKERS}{{instance_id}}")[:1],
        ],
        render=failed,
    )
    app.add_edge(TokenGuard, tokens=TokenSet([settings.cluster_token]))
    install_error_handlers(app, "controller")
    app.include_router(
        health_router(
            "controller",
            lambda: "draining" if fleet.feed.closed else None,
            fleet.metrics.collected,
        )
    )
    app.include_router(native)
    app.include_router(fastchat_router(fleet, relay))
    describe(app, described(ABOUT, (WorkerRecord, *FASTCHAT_BODIES)))
    return app
