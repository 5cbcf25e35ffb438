"""Process trees: their CPU time, and stopping them while others run."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from benchmarks.processes import cpu_s, pausing, tree

PARENT = (
    "import subprocess, sys\n"
    "child = subprocess.Popen([sys.executable, '-c', 'print(1, flush=True); input()'],"
    " stdin=subprocess.PIPE)\n"
    "input()\n"
)


@pytest.fixture
def start() -> Iterator[Callable[[], int]]:
    """Starts a process with a child; both end with the test."""
    started: list[subprocess.Popen[str]] = []

    def one() -> int:
        process = subprocess.Popen(
            [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"  # the child runs
        return process.pid

    yield one
    for process in started:
        for each in tree([process.pid]):
            each.kill()
        process.communicate()


def states(pid: int) -> set[str]:
    return {process.status() for process in tree([pid])}


def become(pid: int, wanted: Callable[[set[str]], bool]) -> bool:
    """Wait until the tree's states are as wanted."""
    deadline = time.monotonic() + 20
    while not wanted(states(pid)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return wanted(states(pid))


def stopped(found: set[str]) -> bool:
    return found == {psutil.STATUS_STOPPED}


def running(found: set[str]) -> bool:
    return psutil.STATUS_STOPPED not in found


def test_only_the_measured_system_runs_and_in_the_end_all_do(start: Callable[[], int]) -> None:
    one, two = start(), start()
    assert len(tree([one])) == 2
    with pausing() as pauses:
        assert not pauses.run_only([one], [one, two])  # it had not been stopped
        assert become(two, stopped)
        assert become(one, running)
        assert pauses.run_only([two], [one, two])
        assert become(one, stopped)
        assert become(two, running)
    assert become(one, running)
    assert become(two, running)


def test_all_run_again_after_an_error(start: Callable[[], int]) -> None:
    one = start()

    def interrupted() -> None:
        with pausing() as pauses:
            pauses.run_only([], [one])
            assert become(one, stopped)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert become(one, running)


def test_two_rows_of_one_stack_stop_nothing(start: Callable[[], int]) -> None:
    one = start()
    with pausing() as pauses:
        assert not pauses.run_only([one], [one, one])
        assert running(states(one))


def test_cpu_time_has_the_children_also_when_they_have_ended() -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass\n"
    parent = (
        "import subprocess, sys\n"
        f"subprocess.run([sys.executable, '-c', {burn!r}])\n"
        "print(1, flush=True); input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        assert cpu_s([process.pid]) >= 0.3
        process.communicate("\n")
    assert cpu_s([process.pid]) == 0
