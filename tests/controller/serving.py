"""Apps on real sockets for tests: one event loop in a thread serves them all."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from trireme.service.http_head import BoundedHttp


class Farm:
    """Serves apps until told to stop; waits for their end only when it is closed itself."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._servers: list[asyncio.Future[None]] = []
        self._thread.start()

    @contextlib.contextmanager
    def serving(self, app: ASGIApp) -> Iterator[str]:
        """The base URL at which `app` answers within the context."""
        listener = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(
            app, http=BoundedHttp, ws="none", log_config=None, timeout_graceful_shutdown=2
        )
        server = uvicorn.Server(config)
        ended = asyncio.run_coroutine_threadsafe(server.serve([listener]), self._loop)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            self._servers.append(asyncio.wrap_future(ended, loop=self._loop))

    def close(self) -> None:
        """Wait until every server has ended."""

        async def all_ended() -> None:
            await asyncio.gather(*self._servers)

        asyncio.run_coroutine_threadsafe(all_ended(), self._loop).result(20)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
