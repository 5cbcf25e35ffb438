"""What the kernel tells of a process that computes, reads, waits or is gone."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import pytest

from worker.engine.effort import cpu_s, effort_of

COMPUTES = "print(flush=True)\nwhile True: pass"
THREADS = f"import threading; threading.Thread(target=lambda: exec({COMPUTES!r})).start()"
STARTS = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {COMPUTES!r}])"
READS = """
import time
print(flush=True)
with open(__import__("sys").executable, "rb", buffering=0) as file:
    while True:
        file.read(1)
        time.sleep(0.01)
"""
WAITS = "import time; print(flush=True); time.sleep(600)"


@contextmanager
def running(code: str) -> Iterator[int]:
    """The pid of a process that has begun what it is for."""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as made:
        assert made.stdout is not None
        made.stdout.readline()
        try:
            yield made.pid
        finally:
            for child in psutil.Process(made.pid).children(recursive=True):
                child.kill()
            made.kill()


def grows(read: Callable[[], object], within_s: float = 20.0) -> bool:
    before, deadline = read(), time.monotonic() + within_s
    while read() == before:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize("code", [COMPUTES, THREADS], ids=["its main thread", "another thread"])
def test_a_process_that_computes_uses_the_cpu(code: str) -> None:
    with running(code) as pid:
        assert grows(lambda: cpu_s(pid))


@pytest.mark.parametrize("code", [COMPUTES, STARTS], ids=["computes", "has started one that does"])
def test_a_process_that_works_makes_an_effort(code: str) -> None:
    with running(code) as pid:
        assert grows(lambda: effort_of(pid))


@pytest.mark.skipif(sys.platform != "linux", reason="not every kernel tells")
def test_reading_is_an_effort() -> None:
    def read() -> int:
        effort = effort_of(pid)
        assert effort is not None
        return effort.io

    with running(READS) as pid:
        assert grows(read)


def test_a_process_that_waits_makes_none() -> None:
    with running(WAITS) as pid:
        assert not grows(lambda: (cpu_s(pid), effort_of(pid)), within_s=1.0)


def test_of_a_process_that_is_gone_nothing_is_made_up() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    assert cpu_s(ended.pid) == 0.0
    assert effort_of(ended.pid) is None
