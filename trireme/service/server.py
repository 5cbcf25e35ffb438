"""Runs a tier's app under uvicorn: exit codes, TLS, a drain before the stop.

SIGTERM or SIGINT calls `drain` (stop advertising, let running requests end), then uvicorn
closes; a second signal stops at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Final

import uvicorn
from fastapi import FastAPI

from trireme.service.http_head import BoundedHttp
from trireme.service.settings import EXIT_OK, EXIT_PORT, TierSettings

log = logging.getLogger(__name__)

HANG_UP_S: Final = 0.3
"""Seconds between looks for connections that are closed on our side only."""
GC_THRESHOLDS: Final = (5_000, 10, 10)
"""A request makes some hundred objects, nearly none of them in cycles; the default is 700."""


class ExitRequest:
    """Lets code inside the app end its process, with an exit code of its own or by a drain."""

    def __init__(self) -> None:
        self.code: int | None = None
        self.reason = ""
        self.drain = False

    def ask(self, code: int, reason: str = "") -> None:
        """Stop serving and return `code`; the first call wins.

        `reason` is one line for a person, the last that the process writes to stderr.
        """
        if self.code is None:
            self.code, self.reason = code, reason

    def ask_drain(self) -> None:
        """Drain and stop, as after a first SIGTERM."""
        self.drain = True


class _Server(uvicorn.Server):
    """uvicorn with a drain stage: the first signal starts it, the second one forces."""

    def __init__(
        self,
        config: uvicorn.Config,
        drain: Callable[[], Awaitable[None]] | None,
        exit_request: ExitRequest,
    ) -> None:
        super().__init__(config)
        self._exit_request = exit_request
        self._drain = drain
        self._draining: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            for one in sockets or ():
                host, port = one.getsockname()[:2]
                shown = f"[{host}]" if ":" in host else host
                scheme = "https" if self.config.is_ssl else "http"
                log.info("listening on %s://%s:%d", scheme, shown, port)
        # what the start has made stays for good: no collection need look at it again
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        hang_up = asyncio.create_task(self._hang_up())
        try:
            await super().shutdown(sockets)
        finally:
            hang_up.cancel()

    async def _hang_up(self) -> None:
        """Do not wait for peers to say goodbye.

        A TLS connection that is closed waits for the peer's close_notify, and an idle client of a
        pool does not answer for 30 s. What is written has left when the buffer is empty.
        """
        while True:
            await asyncio.sleep(HANG_UP_S)
            for connection in list(self.server_state.connections):
                transport: asyncio.WriteTransport = connection.transport
                if transport.is_closing() and transport.get_write_buffer_size() == 0:
                    transport.abort()

    async def on_tick(self, counter: int) -> bool:
        if self._exit_request.code is not None:
            self.should_exit = True
        if self._exit_request.drain:
            self._begin_drain()
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: object) -> None:
        if self._loop is not None and self._drain is not None and self._draining is None:
            self._loop.call_soon_threadsafe(self._begin_drain)
            return
        # the signal is not handed to uvicorn, which would raise it again after a clean stop
        self.force_exit = self.should_exit or self._draining is not None
        self.should_exit = True

    def _begin_drain(self) -> None:
        if self._drain is None:
            self.should_exit = True
        elif self._draining is None:
            self._draining = asyncio.create_task(self._drain_then_exit())

    async def _drain_then_exit(self) -> None:
        assert self._drain is not None
        try:
            await self._drain()
        except Exception:
            log.exception("drain failed; stopping anyway")
        self.should_exit = True


def bind(settings: TierSettings, prog: str) -> socket.socket:
    """The listening socket. A port that is taken ends the process with one line and code 4."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host.strip("[]"), settings.port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be bound ({error})"
        sys.stderr.write(f"{prog}: port {settings.port} on {settings.host} {reason}\n")
        raise SystemExit(EXIT_PORT) from error
    listener.setblocking(False)
    return listener


def run(
    app: FastAPI,
    settings: TierSettings,
    listener: socket.socket,
    *,
    drain: Callable[[], Awaitable[None]] | None = None,
    grace_s: float = 30.0,
    exit_request: ExitRequest | None = None,
    proxy_headers: bool = False,
) -> int:
    """Serve `app` on `listener` until a signal; returns the exit code.

    Args:
        drain: awaited after the first SIGTERM or SIGINT while requests still run; it must be
            bounded in time itself.
        grace_s: seconds that running requests get after the drain before they are cut.
        exit_request: how the app asks for an exit code of its own.
        proxy_headers: whether a proxy on this machine may say by `X-Forwarded-For` whom it serves;
            needed where the peer's address decides something.
    """
    config = uvicorn.Config(
        app,
        http=BoundedHttp,
        ws="none",
        log_config=None,
        access_log=False,
        lifespan="on",
        server_header=False,
        proxy_headers=proxy_headers,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=int(grace_s),
        h11_max_incomplete_event_size=64 * 1024,
        ssl_keyfile=str(settings.ssl_keyfile) if settings.ssl else None,
        ssl_certfile=str(settings.ssl_certfile) if settings.ssl else None,
    )
    exit_request = exit_request or ExitRequest()
    server = _Server(config, drain, exit_request)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    if exit_request.code is not None:
        if exit_request.reason:
            sys.stderr.write(exit_request.reason + "\n")
        return exit_request.code
    return EXIT_OK if server.started else 1
