"""One tier as child process: started on a leash, its output in a file, stopped with its group.

The leash (`leash.py`): on Linux the kernel kills the child when its parent dies. The child leads
a session of its own, so that Ctrl-C in a terminal reaches only the parent, which stops the tiers
in order, and so that what the child started can be killed with it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from trireme.cli import leash


class Child:
    """A process that runs until it is stopped, or until this process ends.

    Args:
        name: what a person calls it, such as `worker-1`.
        command: argv, beginning with a path.
        environment: all of it.
        log: file that takes stdout and stderr; it is emptied at the first start.
    """

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path
    ) -> None:
        self.name = name
        self.log = log
        self._command = list(command)
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._read_to = 0
        log.write_bytes(b"")

    def start(self) -> None:
        """Start it, or start it again after it ended."""
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-IS", leash.__file__, str(os.getpid()), *self._command],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Process id; 0 before the first start."""
        return self._process.pid if self._process else 0

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    def ended(self) -> int | None:
        """The exit code once it has ended, negative for a signal; None while it runs.

        What it started and left behind in its process group is killed then.
        """
        if self._process is None:
            return None
        if self._process.returncode is None and self._process.poll() is not None:
            self._kill_group()
        return self._process.returncode

    def ask_to_stop(self) -> None:
        """SIGTERM: end what runs, then stop."""
        if self.ended() is None and self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        """SIGKILL to it and to all of its group."""
        if self.ended() is None and self._process is not None:
            self._kill_group()
            self._process.wait()

    def new_lines(self) -> list[str]:
        """Whole lines of its output since the last call."""
        with self.log.open("rb") as output:
            output.seek(self._read_to)
            data = output.read()
        whole = data.rfind(b"\n") + 1
        self._read_to += whole
        return data[:whole].decode("utf-8", "replace").splitlines()

    def tail(self, lines: int, max_bytes: int = 64 * 1024) -> list[str]:
        """The last lines of its output."""
        with self.log.open("rb") as output:
            size = output.seek(0, os.SEEK_END)
            output.seek(max(0, size - max_bytes))
            text = output.read().decode("utf-8", "replace")
        return text.splitlines()[-lines:]

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)


def exit_code(code: int) -> int:
    """An exit code as a shell shows it: 128 + n for signal n."""
    return code if code >= 0 else 128 - code


def describe_end(code: int) -> str:
    """How a process ended, for a person."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
