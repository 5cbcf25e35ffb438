"""Framing of JSON values on a byte stream: newline (native), byte 0 (FastChat), SSE (clients)."""

from __future__ import annotations

from typing import Final

NEWLINE: Final = b"\n"
NATIVE_PING: Final = NEWLINE
"""An empty frame: what a worker sends when it has nothing to tell, so that it is known to live."""
NATIVE_PING_S: Final = 2.0
NUL: Final = b"\0"
SSE_DONE: Final = b"data: [DONE]\n\n"
SSE_PING: Final = b": ping\n\n"
MAX_FRAME_BYTES: Final = 64 * 1024 * 1024


class FrameSplitter:
    """Cuts a byte stream, arriving in pieces of any size, at a one-byte delimiter.

    Args:
        delimiter: `NEWLINE` or `NUL`.
        max_bytes: largest frame accepted; a peer that never sends a delimiter cannot fill memory.
    """

    def __init__(self, delimiter: bytes, max_bytes: int = MAX_FRAME_BYTES) -> None:
        self._delimiter = delimiter
        self._max_bytes = max_bytes
        self._tail = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that `data` completes, without delimiters; empty frames are dropped.

        Raises:
            ValueError: when a frame exceeds `max_bytes`.
        """
        *whole, self._tail = (self._tail + data).split(self._delimiter)
        if len(self._tail) > self._max_bytes:
            raise ValueError(f"frame of more than {self._max_bytes} bytes")
        return [frame for frame in whole if frame]

    @property
    def pending(self) -> int:
        """Bytes of an incomplete frame: not 0 at the end means that the stream was cut."""
        return len(self._tail)


def sse(payload: bytes) -> bytes:
    """One server-sent event; `payload` is JSON without raw newlines."""
    return b"data: " + payload + b"\n\n"


def sse_named(event: bytes, payload: bytes) -> bytes:
    """One server-sent event with a name; `payload` is as above."""
    return b"event: " + event + b"\ndata: " + payload + b"\n\n"
