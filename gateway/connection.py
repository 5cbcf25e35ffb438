"""The client's side of a streamed answer: server-sent events, kept open, given up when stuck."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final

from protocol.framing import SSE_PING
from trireme.service.streaming import ByteStream, Patience

PING_S: Final = 15.0
STUCK_S: Final = 30.0
"""A client that reads nothing for so long is given up."""
TICK_S: Final = 1.0

_HEADERS: Final = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def event_stream(
    frames: AsyncGenerator[bytes, None], close: Callable[[], Awaitable[None]]
) -> ByteStream:
    """The response that sends these frames.

    Args:
        frames: whole events, any number of them in a piece.
        close: awaited at the end, however it comes.
    """
    patience = Patience(STUCK_S, ping=SSE_PING, ping_s=PING_S, tick_s=TICK_S)
    return ByteStream(frames, "text/event-stream", patience, headers=_HEADERS, close=close)
