"""What a process does, as the kernel counts it: the engine's watchdog asks when nothing else moves.

Knows no engine. Where the kernel does not tell, nothing is made up.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import psutil


def cpu_s(pid: int) -> float:
    """CPU seconds that the process has used, all its threads together; 0 where it is not told."""
    with contextlib.suppress(psutil.Error, OSError):
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)
    return 0.0


@dataclass(frozen=True, slots=True)
class Effort:
    """What a process and all that it has started have done; whoever works has another one soon.

    Attributes:
        cpu_s: CPU seconds of those that live.
        io: what it has read and written, calls and bytes added up.
    """

    cpu_s: float
    io: int


def effort_of(pid: int) -> Effort | None:
    """The effort so far, None where the kernel does not tell. It reads about every process of the
    machine, which takes milliseconds."""
    try:
        process = psutil.Process(pid)
        times = process.cpu_times()
        family = [process, *process.children(recursive=True)]
    except (psutil.Error, OSError):
        return None
    used_s, io = times.user + times.system, 0
    for one in family:
        with contextlib.suppress(psutil.Error, OSError, AttributeError):  # not on every system
            io += sum(one.io_counters())
        if one is not process:
            used_s += cpu_s(one.pid)
    return Effort(used_s, io)
