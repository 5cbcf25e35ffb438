"""Whether the engine process moves: a counter that two processes share, and who judges it.

The engine process moves the counter on inside its steps and while it waits for work; the HTTP
process reads it from memory. Nothing is asked, so a process that is stopped, or whose one lock is
held for ever, gives itself away by doing nothing. Knows no engine.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from typing import Final, Self, TypeAlias

Beat: TypeAlias = Callable[[], object]
"""Tells that the engine's process moves. Costs well below a microsecond: once a layer is fine."""

_SIZE: Final = 8
_PR_SET_PDEATHSIG: Final = 1


class Pulse:
    """A counter in memory that processes share; one of them writes.

    Args:
        descriptor: of at least 8 bytes of shared memory, the same in all of them.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, _SIZE)
        self._counter = memoryview(self._memory).cast("Q")

    @classmethod
    def create(cls) -> Self:
        """A counter at 0; its descriptor is to be passed to the other process."""
        if sys.platform == "linux":
            descriptor = os.memfd_create("trireme-pulse")
        else:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        os.ftruncate(descriptor, _SIZE)
        return cls(descriptor)

    def beat(self) -> None:
        """Move on. Two threads may lose a count to each other; that it moved shows all the same."""
        self._counter[0] += 1

    @property
    def count(self) -> int:
        """Where it stands."""
        return self._counter[0]

    def close(self) -> None:
        """Give the memory back."""
        self._counter.release()
        self._memory.close()
        os.close(self.descriptor)


class Watchdog:
    """Tells a counter that stands still. Pure.

    Only time that was looked at counts. When the looking itself was held up, as when the whole
    worker was stopped and goes on, a counter that has not moved proves nothing.

    Args:
        limit_s: how long it may stand still.

    Attributes:
        look_every_s: how often to look.
    """

    def __init__(self, limit_s: float) -> None:
        self.look_every_s = min(0.25, limit_s / 8)
        self._limit_s = limit_s
        self._count = -1
        self._still_s = 0.0
        self._looked_s = 0.0

    def is_hung(self, count: int, now_s: float) -> bool:
        """Look: the counter, and the time on a monotonic clock."""
        if count != self._count:
            self._count, self._still_s = count, 0.0
        else:
            self._still_s += min(now_s - self._looked_s, 2 * self.look_every_s)
        self._looked_s = now_s
        return self._still_s > self._limit_s


def idle_beat_s(limit_s: float) -> float:
    """How often a process without work moves its counter on, for a watchdog of this limit."""
    return min(1.0, limit_s / 4)


def end_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, however stuck it is by then.

    On Linux; elsewhere a process that still runs notices that its socket is closed.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
