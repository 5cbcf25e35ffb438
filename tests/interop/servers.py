"""Servers of both stacks as real processes on free loopback ports."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

REPOSITORY = Path(__file__).parents[2]
START_S = 180.0
STOP_S = 20.0


@dataclass(frozen=True)
class Server:
    """A process under test, at its base URL, with its output in a file."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def tail(self) -> str:
        """The last lines it wrote, for a failure's message."""
        return self.log.read_text(errors="replace")[-3000:]

    def wait_until(self, ready: Callable[[], bool], what: str) -> None:
        """Return once `ready`; fail with the output if the process ends or the time is up."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                pytest.fail(f"ended with {self.process.returncode} before {what}:\n{self.tail()}")
            with contextlib.suppress(httpx.HTTPError):
                if ready():
                    return
            time.sleep(0.2)
        pytest.fail(f"not {what} after {START_S:.0f} s:\n{self.tail()}")


class Launcher:
    """Starts servers on free loopback ports, and ends those that it started."""

    def __init__(self, fastchat_python: str, folder: Path) -> None:
        self.fastchat_python = fastchat_python
        self.folder = folder
        self.started: list[Server] = []

    def ours(self, tier: str, *args: str, port: int | None = None) -> Server:
        """Start `python -m controller|worker|gateway`."""
        return self._start([sys.executable, "-m", tier, *args], REPOSITORY, tier, port)

    def fastchat(self, module: str, *args: str, port: int | None = None) -> Server:
        """Start `python -m fastchat.serve.<module>` in FastChat's virtual environment."""
        command = [self.fastchat_python, "-m", f"fastchat.serve.{module}", *args]
        return self._start(command, self.folder, f"fastchat-{module}", port)

    def _start(self, command: list[str], cwd: Path, name: str, port: int | None) -> Server:
        port = port or free_port()
        log = self.folder / f"{name}-{port}.log"
        # LOGDIR: where FastChat writes; offline: no hub is asked for what is on the disk.
        env = os.environ | {"LOGDIR": str(self.folder), "HF_HUB_OFFLINE": "1"}
        env["OMP_NUM_THREADS"] = "1"  # the models are tiny, and many processes share the cores
        command += ["--host", "127.0.0.1", "--port", str(port)]
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, cwd=cwd, env=env, stdout=out, stderr=subprocess.STDOUT
            )
        server = Server(f"http://127.0.0.1:{port}", process, log)
        self.started.append(server)
        return server

    def stop(self) -> None:
        """End every process, the last started first."""
        for server in reversed(self.started):
            server.process.terminate()
            try:
                server.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                server.process.kill()
                server.process.wait()


def free_port() -> int:
    """A loopback port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True)
class Stack:
    """One controller, ours, with two workers and two gateways: one of ours and one of FastChat's.

    Both workers serve the same weights with the same conversation template, each under its own
    name, so that what one answers can be held against what the other answers.
    """

    controller: Server
    our_worker: Server
    their_worker: Server
    our_gateway: Server
    their_gateway: Server
    our_model: str = "vicuna-ours"
    their_model: str = "vicuna-theirs"


def answers(server: Server, path: str) -> bool:
    """Whether a route answers with success, without regard to what."""
    method = "GET" if path == "/test_connection" else "POST"
    return httpx.request(method, server.url + path, json={}).is_success


def models_of(gateway: Server) -> set[str]:
    """The ids that a gateway's /v1/models lists."""
    answer = httpx.get(gateway.url + "/v1/models")
    return {card["id"] for card in answer.json()["data"]} if answer.is_success else set()
