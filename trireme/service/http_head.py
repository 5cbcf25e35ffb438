"""uvicorn's HTTP protocol with bounds on how requests come.

uvicorn hands a request to the app when its head is complete, and keeps all of it until then. So a
head that never ends would fill the memory before any token or key is asked for, and one that never
comes would hold its connection for ever; so would a body that stops half-way.
"""

from __future__ import annotations

import asyncio
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from trireme.service.deadline import Deadline
from trireme.service.hang_up import HangUp
from trireme.service.joined_writes import JoinedWrites

MAX_HEAD_BYTES: Final = 256 * 1024
"""Of a head, or of what follows a chunked body; far above what the tiers take of headers."""
HEAD_TIMEOUT_S: Final = 60.0
BODY_TIMEOUT_S: Final = 300.0
"""From the head to the end of the body; of a pipelined request from the response before."""

_TOO_LARGE: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-length: 0\r\nconnection: close\r\n\r\n"
)
_TOO_SLOW: Final = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class BoundedHttp(HttpToolsProtocol):
    """Closes a connection whose request's head is too long, or whose head or body is late."""

    _pending_bytes = 0
    """Received since the parser last gave something to the app."""
    _in_head = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        joined = JoinedWrites(transport, self.loop)
        self._hang_up = HangUp()
        self._late = Deadline(self.loop, self._give_up)
        self._idle = Deadline(self.loop, self.timeout_keep_alive_handler)
        super().connection_made(joined)  # type: ignore[arg-type]  # it has what a transport has
        self._late.set(HEAD_TIMEOUT_S)

    def connection_lost(self, exc: Exception | None) -> None:
        self._late.end()
        self._idle.end()
        super().connection_lost(exc)
        self._hang_up.tell()

    def data_received(self, data: bytes) -> None:
        self._pending_bytes += len(data)
        super().data_received(data)
        if self._late.at_s is None:
            # bytes that belong to no request end the time that a connection may be idle
            if self._in_head or self.cycle is None or self.cycle.response_complete:
                self._late.set(HEAD_TIMEOUT_S)
            elif self._is_in_body():
                self._late.set(BODY_TIMEOUT_S)
        if self._pending_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.transport.write(_TOO_LARGE)
            self.transport.close()

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()
        self._hang_up.put_into(self.scope["state"])

    def on_headers_complete(self) -> None:
        self._pending_bytes, self._in_head = 0, False
        self._late.clear()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._pending_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._pending_bytes = 0
        self._late.clear()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """What uvicorn's own does, which starts a timer for each."""
        self.server_state.total_requests += 1
        if not self._in_head:
            self._late.clear()  # what is still to come of the body is no request's any more
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            if self._late.at_s is None and self._is_in_body():
                self._late.set(BODY_TIMEOUT_S)  # its request has waited for this response
            return
        self._idle.set(self.timeout_keep_alive)
        if not self._in_head and not self.cycle.more_body:
            # a connection that waits keeps nothing of its last request
            self.scope = self.headers = self.cycle = None  # type: ignore[assignment]

    def _unset_keepalive_if_required(self) -> None:
        self._idle.clear()

    def _is_in_body(self) -> bool:
        """Whether the request that is being answered has not come whole; one that waits behind it
        is not read."""
        cycle = self.cycle
        return not self.pipeline and cycle.more_body and not cycle.response_complete

    def _give_up(self) -> None:
        if not self._in_head and self.cycle is not None and not self.cycle.response_started:
            self.transport.write(_TOO_SLOW)
        self.transport.close()
