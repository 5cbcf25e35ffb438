"""Limits of callers: what a request takes at its arrival, and the headers that tell what is left.

A request takes one request and the tokens that it may need; at its end these are set right. The
limits hold for all processes of a gateway together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from time import monotonic
from typing import Final

from starlette.types import Scope

from gateway.buckets import Table, left, taken, wait_s
from gateway.keys import ApiKey
from protocol.errors import TriremeError

RESERVED_TOKENS: Final = 256
"""Taken for each answer of a request that does not say how long it may get."""
LIMIT_HEADERS: Final = tuple(
    f"x-ratelimit-{what}-{name}"
    for name in ("requests", "tokens")
    for what in ("limit", "remaining", "reset")
)
_HEADERS: Final = tuple(
    tuple(name.encode() for name in LIMIT_HEADERS if name.endswith(kind))
    for kind in ("requests", "tokens")
)
_ID_BYTES: Final = 16


class Limiter:
    """Buckets of all callers.

    Args:
        refused: called with `requests`, `tokens` or `size` when a request is refused.
        clock: seconds; all processes that share the table must have the same one.
    """

    def __init__(
        self,
        table: Table,
        refused: Callable[[str], None] = lambda _limit: None,
        *,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._table = table
        self._refused = refused
        self._clock = clock

    def take(self, key: ApiKey, tokens: int) -> None:
        """Take one request and so many tokens, or nothing.

        Raises:
            TriremeError: `rate_limit_exceeded` or `token_limit_exceeded` with the seconds until
                it would fit; `insufficient_quota` for what never will.
        """
        limits = key.limits
        if not limits:
            return
        if limits.tokens and tokens > limits.tokens:
            self._refused("size")
            message = (
                f"The request needs up to {tokens} tokens, which is more than the limit of "
                f"{limits.tokens} tokens a minute. Shorten the prompt, or ask for less."
            )
            raise TriremeError("insufficient_quota", message)
        now = self._clock()
        numbers, at = self._table.numbers, self._table.acquire(key.digest[:_ID_BYTES])
        try:
            for_requests_s = for_tokens_s = 0.0
            if limits.requests:
                for_requests_s = wait_s(limits.requests, numbers[at], 1, now)
            if limits.tokens:
                for_tokens_s = wait_s(limits.tokens, numbers[at + 1], tokens, now)
            if not for_requests_s and not for_tokens_s:
                if limits.requests:
                    numbers[at] = taken(limits.requests, numbers[at], 1, now)
                if limits.tokens:
                    numbers[at + 1] = taken(limits.tokens, numbers[at + 1], tokens, now)
                return
        finally:
            self._table.release(at)
        longest_s, name, limit = max(
            (for_requests_s, "requests", limits.requests), (for_tokens_s, "tokens", limits.tokens)
        )
        self._refused(name)
        message = (
            f"The limit of {limit} {name} a minute is reached. "
            f"Please try again in {duration(longest_s)}."
        )
        code = "rate_limit_exceeded" if name == "requests" else "token_limit_exceeded"
        raise TriremeError(code, message, retry_after_s=longest_s)

    def correct(self, key: ApiKey, reserved: int, used: int) -> None:
        """At a request's end: it took so many tokens, and has used so many."""
        limit = key.limits.tokens
        if not limit or reserved == used:
            return
        numbers, at = self._table.numbers, self._table.acquire(key.digest[:_ID_BYTES])
        try:
            full_at = numbers[at + 1]
            numbers[at + 1] = taken(limit, full_at, used - reserved, self._clock())
        finally:
            self._table.release(at)

    def headers(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        """`x-ratelimit-*`, as OpenAI has them: what is left to the caller of a request of this
        scope, where that is known and has limits."""
        key: ApiKey | None = scope["state"].get("caller")
        if key is None or not key.limits:
            return []
        states, now = self._table.peek(key.digest[:_ID_BYTES]), self._clock()
        limits = (key.limits.requests, key.limits.tokens)
        found: list[tuple[bytes, bytes]] = []
        for full_at, limit, names in zip(states, limits, _HEADERS, strict=True):
            if limit:
                rest = max(0, int(left(limit, full_at, now)))
                reset = duration(full_at - now).encode()
                found += zip(names, (b"%d" % limit, b"%d" % rest, reset), strict=True)
        return found


def duration(seconds: float) -> str:
    """As OpenAI's headers have it: `20ms`, `1.5s`, `6m0s`, `1h0m0s`; rounded up."""
    millis = max(0, math.ceil(1000 * seconds))
    if millis < 1000:
        return f"{millis}ms" if millis else "0s"
    minutes, rest = divmod(millis, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{rest / 1000:g}s"
    if hours or minutes:
        text = f"{minutes}m{text}"
    return f"{hours}h{text}" if hours else text
