"""Children of a test: started with a log, always stopped."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


class Child:
    """A running process and what it writes."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        self._log = log
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=dict(env),
                cwd=ROOT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self._log.read_text(errors="replace")

    def stop(self, timeout_s: float = 20) -> int:
        """SIGTERM, then SIGKILL when it does not help; the exit code."""
        self.process.terminate()
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


class Children:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.started: list[Child] = []

    def start(self, command: Sequence[str], env: Mapping[str, str] | None = None) -> Child:
        log = self._folder / f"{len(self.started)}.log"
        child = Child(command, {**clean_environment(), **(env or {})}, log)
        self.started.append(child)
        return child

    def stop(self) -> None:
        for child in reversed(self.started):
            if child.process.poll() is None:
                child.stop()

    def wait(self, ready: Callable[[], bool], timeout_s: float = 60) -> None:
        """Wait until `ready` says so; fail when a child ends before, or when it takes too long."""
        deadline = time.monotonic() + timeout_s
        while not ready():
            for child in self.started:
                code = child.process.poll()
                assert code is None, f"ended with code {code}:\n{child.output[-3000:]}"
            logs = "\n".join(child.output[-1500:] for child in self.started)
            assert time.monotonic() < deadline, f"not ready after {timeout_s} s:\n{logs}"
            time.sleep(0.1)


def clean_environment() -> dict[str, str]:
    """This process' environment without anything that configures a tier; scripts are found."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("TRIREME_", "SSL_", "OPENAI_"))
    }
    bin_folder = str(Path(sys.executable).parent)
    kept["PATH"] = bin_folder + os.pathsep + kept.get("PATH", "")
    kept["PYTHONUNBUFFERED"] = "1"
    return kept


@pytest.fixture(scope="module")
def children(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Children]:
    """Starts processes that end with the module's last test."""
    started = Children(tmp_path_factory.mktemp("children"))
    try:
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="module")
def free_ports() -> Callable[[int], list[int]]:
    """Ports that were free a moment ago, all different."""

    def find(count: int) -> list[int]:
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
            for one in sockets:
                one.bind(("127.0.0.1", 0))
            return [one.getsockname()[1] for one in sockets]

    return find


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's folder."""
    return ROOT
