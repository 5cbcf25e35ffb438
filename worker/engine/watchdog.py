"""Whether the engine process moves: a counter that two processes share, and who judges it.

The engine process moves the counter on inside its steps and while it waits for work; the HTTP
process reads it from memory. Nothing is asked, so a process that is stopped, or whose one lock is
held for ever, gives itself away by doing nothing. One that computes without moving the counter
may be in the middle of something large, and gets more time. Knows no engine.
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
_NOTICEABLE: Final = 0.05
"""Of a core. Threads that wait for a lock use less: Python's look for theirs 200 times a second."""
_COMPUTING: Final = 6
_LEAST_COMPUTING_S: Final = 60.0


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
    """Tells a process that does nothing, or that computes for too long without a sign. Pure.

    It is hung when its progress has stood still for `limit_s` in which it hardly used the CPU
    either, or for six times as long, a minute at least, whatever it used: a long layer is no hung
    one.

    Only time that was looked at counts. When the looking itself was held up, as when the whole
    worker was stopped and goes on, progress that stands still proves nothing.

    Args:
        limit_s: how long it may do nothing.
        look_every_s: the longest pause between two looks.

    Attributes:
        look_every_s: how often to look.
        still_s: for how long there has been no progress.
    """

    def __init__(self, limit_s: float, look_every_s: float = 0.25) -> None:
        self.look_every_s = min(look_every_s, limit_s / 8)
        self._computing_limit_s = max(_COMPUTING * limit_s, _LEAST_COMPUTING_S)
        self._limit_s = limit_s
        self._progress: object = None
        self.still_s = self._idle_s = 0.0
        self._cpu_s = 0.0
        self._looked_s = 0.0

    def is_hung(self, progress: object, now_s: float, cpu_s: float = 0.0) -> bool:
        """Look.

        Args:
            progress: anything that differs once the process has made progress.
            now_s: on a monotonic clock.
            cpu_s: CPU seconds that the process has used; 0 where nobody knows.
        """
        passed_s = min(now_s - self._looked_s, 2 * self.look_every_s)
        self._looked_s = now_s
        self.still_s += passed_s
        self._idle_s += passed_s
        moved = progress != self._progress
        if moved:
            self._progress, self.still_s = progress, 0.0
        if moved or cpu_s - self._cpu_s >= _NOTICEABLE * self._limit_s:
            self._cpu_s, self._idle_s = cpu_s, 0.0
        return self._idle_s > self._limit_s or self.still_s > self._computing_limit_s


def idle_beat_s(limit_s: float) -> float:
    """How often a process without work moves its counter on, for a watchdog of this limit."""
    return min(1.0, limit_s / 4)


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, however stuck it is by then; end it
    now when the parent has ended already.

    On Linux; elsewhere a process that still runs notices that its socket is closed.

    Args:
        parent: its process id, as the parent itself has told it.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the kernel was told
        os._exit(1)
