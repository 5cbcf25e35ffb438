"""A timer for what nearly never happens, such as a connection that stays idle for too long.

It is set and cleared for each request. As a timer of the event loop it would go into a heap of
those of all connections each time, and be taken out again; so one that is there already is left to
be due, and only then looked at. Knows no connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

_LEAST_S: Final = 0.001
"""What the loop may round: a timer that is early by less is due."""


class Deadline:
    """Calls `call` once the time is over that was given last, unless it was cleared before.

    Attributes:
        at_s: when that is, by the loop's clock; None: never.
    """

    __slots__ = ("_call", "_looks_at_s", "_loop", "_timer", "at_s")

    def __init__(self, loop: asyncio.AbstractEventLoop, call: Callable[[], object]) -> None:
        self.at_s: float | None = None
        self._call = call
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self._looks_at_s = 0.0

    def set(self, after_s: float) -> None:
        """So many seconds from now, whatever was set before."""
        self.at_s = at_s = self._loop.time() + after_s
        if self._timer is None or at_s < self._looks_at_s:
            self._look_at(at_s)

    def clear(self) -> None:
        """Never, until it is set again."""
        self.at_s = None

    def end(self) -> None:
        """Never again, and nobody is kept alive by it."""
        self.at_s = None
        self._call = _nothing
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_at(self, at_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._looks_at_s = at_s
        self._timer = self._loop.call_later(at_s - self._loop.time(), self._look)

    def _look(self) -> None:
        self._timer = None
        if self.at_s is None:
            return
        if self.at_s - self._loop.time() > _LEAST_S:
            self._look_at(self.at_s)
        else:
            self.at_s = None
            self._call()


def _nothing() -> None:
    pass
