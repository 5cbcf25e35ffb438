"""A transport whose writes of one turn of the event loop leave together.

A server writes an answer's head and its body one after the other. Sent as they come these are two
system calls, each of which wakes the peer: more than a tenth of a gateway's work
(docs/performance.md).
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

MOST_HELD_BYTES: Final = 64 * 1024
"""Beyond it nothing waits for the end of the turn, so that the transport can say: full."""


class JoinedWrites:
    """Stands in for `transport`; everything but writing is its own."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self.is_closing = transport.is_closing  # asked at every answer
        self._transport = transport
        self._loop = loop
        self._held: list[bytes] = []
        self._held_bytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._held:
            self._loop.call_soon(self._flush)
        self._held.append(data)
        self._held_bytes += len(data)
        if self._held_bytes > MOST_HELD_BYTES:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def get_write_buffer_size(self) -> int:
        return self._held_bytes + self._transport.get_write_buffer_size()

    def _flush(self) -> None:
        held, self._held, self._held_bytes = self._held, [], 0
        if held and not self.is_closing():
            self._transport.write(b"".join(held))
