"""A stack of our own for a measurement: three child processes on free ports of loopback."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path


class StackFailed(RuntimeError):
    """A tier ended before the stack was ready; the message holds the end of its log."""


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running_stack(
    worker_args: Sequence[str], logs: Path, *, ready_timeout_s: float = 600.0
) -> Iterator[str]:
    """Start controller, worker and gateway, give the gateway's URL, stop them at the end.

    Raises:
        StackFailed: a tier ended, or no model could be served in time.
    """
    logs.mkdir(parents=True, exist_ok=True)
    controller, worker, gateway = free_port(), free_port(), free_port()
    at = f"http://127.0.0.1:{controller}"
    commands = {
        "controller": ["--port", str(controller)],
        "worker": ["--port", str(worker), "--controller-address", at, *worker_args],
        "gateway": ["--port", str(gateway), "--controller-address", at],
    }
    # a token or keys that the person has set for another stack mean nothing here
    env = {name: value for name, value in os.environ.items() if not name.startswith("TRIREME_")}
    processes: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for tier, args in commands.items():
            with (logs / f"{tier}.log").open("wb") as log:
                processes[tier] = subprocess.Popen(
                    [sys.executable, "-m", tier, *args],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=env,
                )
        url = f"http://127.0.0.1:{gateway}"
        _wait_ready(url, processes, logs, ready_timeout_s)
        yield url
    finally:
        for process in reversed(processes.values()):  # the gateway first, as it was made last
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_ready(
    url: str, processes: dict[str, subprocess.Popen[bytes]], logs: Path, timeout_s: float
) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        for tier, process in processes.items():
            if process.poll() is not None:
                tail = (logs / f"{tier}.log").read_text(errors="replace")[-2000:]
                raise StackFailed(f"the {tier} ended with code {process.returncode}:\n{tail}")
        with contextlib.suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(f"{url}/readyz", timeout=2)
            return
        time.sleep(0.2)
    raise StackFailed(f"no model could be served within {timeout_s:.0f} s; logs are in {logs}")
