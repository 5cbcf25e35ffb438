"""The tiers as real processes on free ports of loopback, for tests that need all of them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Tier:
    """One process of a tier, its output in a file.

    Args:
        port: a free one unless it is given.
        prefix: a command that runs the command behind it, elsewhere perhaps.
    """

    def __init__(
        self,
        tier: str,
        log: Path,
        *args: str,
        port: int | None = None,
        prefix: Sequence[str] = (),
        **environment: str,
    ) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("TRIREME_", "SSL_", "OPENAI_"))
        }
        log.write_bytes(b"")
        self._command = [*prefix, sys.executable, "-m", tier, "--port", str(self.port), *args]
        # what a test asks for is nobody's usage, whoever starts it: `make chaos` has no conftest
        self._environment = kept | {"XDG_STATE_HOME": str(log.parent)} | environment
        self.start()

    def start(self) -> None:
        """Start it, or start it again at its port."""
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self._command,
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def wait_ready(self, timeout_s: float = 180.0) -> None:
        """Until `/readyz` answers 200; fails with the log's end when the process has ended."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            code = self.process.poll()
            assert code is None, f"exit code {code}:\n{self.log.read_text()[-2000:]}"
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200:
                    return
            time.sleep(0.05)
        raise AssertionError(f"not ready after {timeout_s} s:\n{self.log.read_text()[-2000:]}")

    def kill(self) -> None:
        """SIGKILL, and reap it."""
        self.process.kill()
        self.process.wait()

    def stop(self, timeout_s: float = 15.0) -> int:
        """SIGTERM; gives the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = httpx.get(f"{self.url}/metrics", timeout=5).text.splitlines()
        found = [line for line in lines if line.startswith((name + "{", name + " "))]
        assert found, f"no metric {name}"
        return sum(float(line.rsplit(" ", 1)[1]) for line in found)


class Stack:
    """A controller, a gateway and workers that a test adds and ends as it likes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[Tier] = []
        self.workers: list[Tier] = []
        self.controller = self._start("controller")
        self.gateway = self._start("gateway", "--controller-address", self.controller.url)
        self.controller.wait_ready()

    def _start(self, tier: str, *args: str) -> Tier:
        made = Tier(tier, self._folder / f"{tier}-{len(self._started)}.log", *args)
        self._started.append(made)
        return made

    def add_worker(self, *args: str) -> Tier:
        """A worker that registers here; `wait_serving` tells when it is there."""
        worker = self._start("worker", "--controller-address", self.controller.url, *args)
        self.workers.append(worker)
        return worker

    def add_gateway(self, *args: str) -> Tier:
        """One more gateway over the same controller."""
        return self._start("gateway", "--controller-address", self.controller.url, *args)

    def wait_serving(self, timeout_s: float = 60.0) -> None:
        """Until the gateway knows every worker that runs."""
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.wait_ready()
        self.gateway.wait_ready()
        alive = {worker.url for worker in self.workers if worker.process.poll() is None}
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.known() >= alive:
                time.sleep(0.2)  # the gateway hears of a change within 100 ms
                return
            time.sleep(0.05)
        raise AssertionError(f"the controller knows {self.known()} of {alive}")

    def known(self) -> set[str]:
        """Addresses of the workers that the controller holds as ready."""
        fleet = httpx.get(f"{self.controller.url}/fleet", timeout=5).json()
        return {one["address"] for one in fleet["workers"] if one["state"] == "ready"}

    def post(self, path: str, body: dict[str, Any], timeout_s: float = 60.0) -> httpx.Response:
        """One request to the gateway."""
        return httpx.post(f"{self.gateway.url}{path}", json=body, timeout=timeout_s)

    def close(self) -> None:
        """End what still runs."""
        for tier in reversed(self._started):
            if tier.process.poll() is None:
                tier.process.kill()
            tier.process.wait()


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Stack]:
    """A stack that is ended with the block."""
    stack = Stack(folder)
    try:
        yield stack
    finally:
        stack.close()
