"""How long a request may take: the gateway's bound and the client's, whichever is shorter."""

from __future__ import annotations

from protocol.errors import TriremeError, quoted


def deadline_s(header: str | None, limit_s: float) -> float:
    """Seconds from arrival.

    Args:
        header: the client's `x-request-timeout-ms`.
        limit_s: the gateway's own bound.

    Raises:
        TriremeError: when the header is no positive number of milliseconds.
    """
    if header is None:
        return limit_s
    text = header.strip()
    if not (text.isascii() and text.isdecimal() and 0 < len(text) <= 12 and int(text) > 0):
        message = (
            f"x-request-timeout-ms must be a positive number of milliseconds, got {quoted(text)}."
        )
        raise TriremeError("invalid_value", message)
    return min(int(text) / 1000, limit_s)
