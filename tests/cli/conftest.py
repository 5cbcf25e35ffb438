"""Apps on real sockets, and the `trireme` command as a process."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from starlette.types import ASGIApp

from tests.controller.serving import Farm

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def farm() -> Iterator[Farm]:
    """Where all apps of the session are served."""
    farm = Farm()
    yield farm
    farm.close()


@pytest.fixture
def serve(farm: Farm) -> Iterator[Callable[[ASGIApp], str]]:
    """Serve an app on a free port until the test ends; gives its base URL."""
    with contextlib.ExitStack() as stack:
        yield lambda app: stack.enter_context(farm.serving(app))


@pytest.fixture
def command_environment() -> dict[str, str]:
    """Environment in which `python -m trireme.cli` finds this checkout and no one's settings."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("TRIREME_", "SSL_", "OPENAI_"))
    }
    return kept | {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "NO_COLOR": "1"}


@pytest.fixture
def trireme(
    command_environment: dict[str, str],
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `trireme …` to its end."""

    def run(*args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "trireme.cli", *args],
            env=command_environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


TAKE_TERMINAL = """
import os, sys
os.close(os.open(os.ttyname(0), os.O_RDWR))
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


class Terminal:
    """The `trireme` command on a pseudo-terminal of its own."""

    def __init__(self, environment: dict[str, str], folder: Path, *args: str) -> None:
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", TAKE_TERMINAL, "-m", "trireme.cli", *args],
            cwd=folder,
            env=environment | {"TERM": "xterm"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self.shown = ""
        self.everything = ""

    def expect(self, text: str, seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.shown:
            assert time.monotonic() < deadline, self.shown
            self._read()
        self.shown = self.shown.partition(text)[2]

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def interrupt(self, answer: str, seconds: float = 20) -> None:
        """Press Ctrl-C until it is answered.

        A signal that comes after `input` wrote its prompt and before it waits for a key is only
        noticed with the next one: CPython looks for signals when its select is interrupted.
        """
        deadline = time.monotonic() + seconds
        while answer not in self.shown:
            assert time.monotonic() < deadline, self.shown
            self.type("\x03")
            pressed = time.monotonic()
            while answer not in self.shown and time.monotonic() < pressed + 1:
                self._read()
        self.shown = self.shown.partition(answer)[2]

    def exit_code(self, seconds: float = 20) -> int:
        """Read on until it has ended."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.shown
            self._read()
        return self.process.returncode

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)

    def _read(self) -> None:
        if select.select([self.master], [], [], 0.1)[0]:
            with contextlib.suppress(OSError):  # the other side is closed
                read = os.read(self.master, 4096).decode("utf-8", "replace")
                self.shown += read
                self.everything += read


@pytest.fixture
def terminal_of(
    command_environment: dict[str, str], tmp_path: Path
) -> Iterator[Callable[..., Terminal]]:
    """Run `trireme …` on a terminal until the test ends."""
    with contextlib.ExitStack() as stack:

        def begin(*args: str) -> Terminal:
            terminal = Terminal(command_environment, tmp_path, *args)
            stack.callback(terminal.close)
            return terminal

        yield begin
