"""A tier as child process: its leash, its group, its output."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from trireme.cli.child import Child, describe_end, exit_code

ROOT = str(Path(__file__).parents[2])
SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]
WITH_GRANDCHILD = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""
PARENT = """
import os, sys, time
from pathlib import Path
from trireme.cli.child import Child
child = Child("c", [sys.executable, "-c", "import time; time.sleep(60)"], os.environ, Path(sys.argv[1]))
child.start()
print(child.pid, flush=True)
time.sleep(60)
"""  # noqa: E501


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[list[str]], Child]]:
    made: list[Child] = []

    def start(command: list[str]) -> Child:
        child = Child("c", command, os.environ, tmp_path / f"{len(made)}.log")
        child.start()
        made.append(child)
        return child

    yield start
    for child in made:
        child.kill()


def until(condition: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_child_dies_with_its_parent_however_that_dies(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(tmp_path / "log")]
    environment = os.environ | {"PYTHONPATH": ROOT}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.kill()
    until(lambda: not alive(pid))


def test_what_a_crashed_child_left_behind_is_killed(make: Callable[[list[str]], Child]) -> None:
    child = make([sys.executable, "-c", WITH_GRANDCHILD])
    lines: list[str] = []
    until(lambda: lines.extend(child.new_lines()) or lines)
    grandchild = int(lines[0])
    os.kill(child.pid, signal.SIGKILL)
    until(lambda: child.ended() is not None)
    assert child.ended() == -signal.SIGKILL
    until(lambda: not alive(grandchild))


def test_stop_and_kill(make: Callable[[list[str]], Child]) -> None:
    child = make(SLEEP)
    until(child.new_lines)
    assert child.ended() is None
    child.ask_to_stop()
    until(lambda: child.ended() is not None)
    assert child.ended() == -signal.SIGTERM
    assert not child.running
    child.ask_to_stop()
    child.kill()
    child.start()
    assert child.running
    child.kill()
    assert child.ended() == -signal.SIGKILL


def test_output_is_read_in_whole_lines_and_once(make: Callable[[list[str]], Child]) -> None:
    child = make([sys.executable, "-c", "print('one'); print('two \\u00e4'); print('end', end='')"])
    until(lambda: child.ended() is not None)
    assert child.new_lines() == ["one", "two ä"]
    assert child.new_lines() == []
    assert child.tail(2) == ["two ä", "end"]


def test_ends_are_told_as_a_shell_and_a_person_would() -> None:
    assert (exit_code(0), exit_code(3), exit_code(-9)) == (0, 3, 137)
    assert describe_end(3) == "ended with exit code 3"
    assert describe_end(-signal.SIGSEGV) == "was killed by SIGSEGV"
    assert describe_end(-63) == "was killed by signal 63"
