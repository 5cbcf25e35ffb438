"""uvicorn's HTTP protocol with bounds on what comes before a request is known.

uvicorn hands a request to the app when its head is complete, and keeps all of it until then. So a
head that never ends would fill the memory before any token or key is asked for, and one that never
comes would hold its connection for ever.
"""

from __future__ import annotations

import asyncio
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES: Final = 256 * 1024
"""Of a head, or of what follows a chunked body; far above what the tiers take of headers."""
HEAD_TIMEOUT_S: Final = 60.0

_TOO_LARGE: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-length: 0\r\nconnection: close\r\n\r\n"
)


class BoundedHttp(HttpToolsProtocol):
    """Closes a connection whose request's head is too long, or late."""

    _pending_bytes = 0
    """Received since the parser last gave something to the app."""
    _in_head = True
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._pending_bytes += len(data)
        super().data_received(data)
        # bytes that belong to no request end the server's own timer of idle connections
        idle = self.cycle is None or self.cycle.response_complete
        if (self._in_head or idle) and self._late is None:
            self._watch()
        if self._pending_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.transport.write(_TOO_LARGE)
            self.transport.close()

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._pending_bytes, self._in_head = 0, False
        self._unwatch()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._pending_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._pending_bytes = 0
        super().on_message_complete()

    def _watch(self) -> None:
        self._late = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)

    def _unwatch(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
