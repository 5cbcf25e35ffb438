"""A transport that lets an answer's head wait for what follows it in the same turn of the loop.

A server writes an answer's head and its body one after the other. Sent as they come these are two
system calls, each of which wakes the peer: more than a tenth of a gateway's work
(docs/performance.md). Everything else leaves at once: a token of a stream waits for nothing.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

_HEAD: Final = b"HTTP/1.1 "


class JoinedWrites:
    """Stands in for `transport`; everything but writing is its own."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._held:
            head, self._held = self._held, b""
            if not self._transport.is_closing():
                self._transport.writelines((head, data))
        elif data.startswith(_HEAD):
            self._held = data
            self._loop.call_soon(self._flush)
        elif not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def get_write_buffer_size(self) -> int:
        return len(self._held) + self._transport.get_write_buffer_size()

    def _flush(self) -> None:
        held, self._held = self._held, b""
        if held and not self._transport.is_closing():
            self._transport.write(held)
