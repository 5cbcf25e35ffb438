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
from dataclasses import dataclass
from pathlib import Path

from trireme.cli import leash
from trireme.cli.launch import tier_command, tier_environment


class StackFailed(RuntimeError):
    """A tier ended before the stack was ready; the message holds the end of its log."""


@dataclass(frozen=True, slots=True)
class OwnStack:
    """Where the tiers listen, and their root processes."""

    controller_url: str
    worker_url: str
    gateway_url: str
    pids: dict[str, int]


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
    with own_stack(worker_args, logs, ready_timeout_s=ready_timeout_s) as stack:
        yield stack.gateway_url


@contextlib.contextmanager
def own_stack(
    worker_args: Sequence[str], logs: Path, *, ready_timeout_s: float = 600.0
) -> Iterator[OwnStack]:
    """The same, telling all addresses and pids. To be called from the main thread.

    Raises:
        StackFailed: a tier ended, or no model could be served in time.
    """
    logs.mkdir(parents=True, exist_ok=True)
    urls = {tier: f"http://127.0.0.1:{free_port()}" for tier in ("controller", "worker", "gateway")}
    at = ["--controller-address", urls["controller"]]
    args: dict[str, list[str]] = {"controller": [], "worker": [*at, *worker_args], "gateway": at}
    processes: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for tier, url in urls.items():
            port = url.rpartition(":")[2]
            processes[tier] = _start(tier, ["--port", port, *args[tier]], logs / f"{tier}.log")
        _wait_ready(urls["gateway"], processes, logs, ready_timeout_s)
        yield OwnStack(
            controller_url=urls["controller"],
            worker_url=urls["worker"],
            gateway_url=urls["gateway"],
            pids={tier: process.pid for tier, process in processes.items()},
        )
    finally:
        for process in reversed(processes.values()):  # the gateway first, as it was made last
            _stop(process)


def _start(tier: str, args: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """The tier as a child that dies with this process."""
    # a token or keys that the person has set for another stack mean nothing here
    env = {
        name: value
        for name, value in tier_environment().items()
        if not name.startswith(("TRIREME_", "SSL_"))
    }
    env["XDG_STATE_HOME"] = str(log.parent)  # what is measured is nobody's usage
    on_leash = [sys.executable, "-IS", leash.__file__, str(os.getpid())]
    with log.open("wb") as output:
        return subprocess.Popen(
            [*on_leash, *tier_command(tier, args)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,  # Ctrl-C reaches this process alone, which stops them in order
        )


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
