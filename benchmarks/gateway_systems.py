"""What `benchmarks.gateway` measures: a started system, and how to ask it.

Every row of a measurement is a `Way`: the same request, straight to the worker or through a
gateway in front of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from benchmarks.gateway_load import NUMBER
from benchmarks.stack import free_port

MODEL: Final = "sim"
_PROMPT: Final = f"{NUMBER} " + "what does the river carry to the harbour in winter " * 5


@dataclass(frozen=True, slots=True)
class Way:
    """How a system is asked for an answer of so many tokens.

    Attributes:
        gateway: pids of the processes whose CPU is the gateway's, none for the direct way.
        backend: pids of what stands behind it.
        body: (tokens, stream) -> JSON object.
        mark, end: see `gateway_load.Spec`; `whole_end` is for answers that are not streamed.
        exact: whether an answer has one mark a token.
    """

    name: str
    url: str
    body: Callable[[int, bool], Mapping[str, Any]]
    mark: str
    end: str
    whole_end: str
    gateway: tuple[int, ...] = ()
    backend: tuple[int, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    exact: bool = True


def native(url: str, worker: int) -> Way:
    """Straight to a worker of ours; its native route always streams."""

    def body(tokens: int, _stream: bool) -> dict[str, Any]:
        return {
            "request_id": f"bench-{NUMBER}",
            "model": MODEL,
            "messages": [{"role": "user", "content": _PROMPT}],
            "conv_stops": True,
            "sampling": {"max_tokens": tokens, "temperature": 0.0},
        }

    end = '"kind":"done"'
    return Way(
        "direct", f"{url}/native/generate", body, '"kind":"delta"', end, end, backend=(worker,)
    )


def openai(name: str, url: str, gateway: Sequence[int], backend: Sequence[int]) -> Way:
    """Chat through a server that speaks OpenAI's API."""

    def body(tokens: int, stream: bool) -> dict[str, Any]:
        return {
            "model": MODEL,
            "messages": [{"role": "user", "content": _PROMPT}],
            "max_tokens": tokens,
            "temperature": 0.0,
            "stream": stream,
        }

    return Way(
        name,
        f"{url}/v1/chat/completions",
        body,
        '"content":"',
        "data: [DONE]",
        '"finish_reason"',
        tuple(gateway),
        tuple(backend),
    )


@contextlib.contextmanager
def peer_ways(
    peers: Mapping[str, str], stack: Stack, tokens: int, logs: Path
) -> Iterator[list[Way]]:
    """Other gateways, each in front of a simulated worker.

    FastChat's is in front of the stack's own worker, which speaks its wire; the others are in
    front of a backend that speaks OpenAI's API and costs less than ours.

    Args:
        peers: name of the peer -> interpreter that has it.
    """
    from benchmarks.peers import GATEWAY_PEERS, simulated
    from benchmarks.peers.simulated_backend import Pace

    with contextlib.ExitStack() as running:
        ways = []
        backend = None
        for name, python in peers.items():
            behind: tuple[int, ...]
            if name == "fastchat":
                url, behind = stack.worker_url, (stack.worker,)
            else:
                if backend is None:
                    backend = running.enter_context(simulated(logs, MODEL, Pace(tokens)))
                url, behind = backend.base_url, backend.pids
            target = running.enter_context(GATEWAY_PEERS[name](python, logs / name, url, MODEL))
            way = openai(name, target.base_url, target.pids, behind)
            # they write JSON with spaces or without, and may send an empty text first
            ways.append(replace(way, mark='"content"', exact=False))
        yield ways


@dataclass(frozen=True, slots=True)
class Stack:
    """Three tiers of ours, the worker with the simulated engine."""

    controller_url: str
    worker_url: str
    gateway_url: str
    controller: int
    worker: int
    gateway: int

    @property
    def ways(self) -> tuple[Way, Way]:
        """The direct row, and the one through the gateway."""
        through = openai("gateway", self.gateway_url, (self.gateway,), (self.worker,))
        return native(self.worker_url, self.worker), through


@contextlib.contextmanager
def children(logs: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """A function that starts `python -m …` (or a command); all are stopped at the end."""
    logs.mkdir(parents=True, exist_ok=True)
    env = {name: value for name, value in os.environ.items() if not name.startswith("TRIREME_")}
    env["XDG_STATE_HOME"] = str(logs)  # what is measured is nobody's usage
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str, *command: str, **environment: str) -> subprocess.Popen[bytes]:
        with (logs / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=env | environment,
            )
        started.append(process)
        return process

    try:
        yield start
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def our_stack(
    worker_args: Sequence[str], logs: Path, gateway_args: Sequence[str] = (), source: str = ""
) -> Iterator[Stack]:
    """Start controller, worker and gateway.

    Args:
        source: folder of a checkout to run instead of this one, for a comparison.
    """
    controller, worker, gateway = free_port(), free_port(), free_port()
    at = f"http://127.0.0.1:{controller}"
    python = (sys.executable, *(("-P",) if source else ()), "-m")
    path = {"PYTHONPATH": source} if source else {}
    with children(logs) as start:
        first = start("controller", *python, "controller", "--port", str(controller), **path)
        second = start(
            "worker",
            *(*python, "worker", "--port", str(worker), "--controller-address", at),
            *("--engine", "sim", "--model-names", MODEL, *worker_args),
            **path,
        )
        third = start(
            "gateway",
            *(*python, "gateway", "--port", str(gateway), "--controller-address", at),
            *gateway_args,
            **path,
        )
        url = f"http://127.0.0.1:{gateway}"
        wait_for(f"{url}/readyz", (first, second, third))
        yield Stack(at, f"http://127.0.0.1:{worker}", url, first.pid, second.pid, third.pid)


def wait_for(
    url: str, processes: Sequence[subprocess.Popen[bytes]], timeout_s: float = 120.0
) -> None:
    """Return when `url` answers 200.

    Raises:
        RuntimeError: a process ended, or the time is over.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        for process in processes:
            if process.poll() is not None:
                raise RuntimeError(f"{process.args!r} ended with code {process.returncode}")
        with contextlib.suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(url, timeout=2)
            return
        time.sleep(0.1)
    raise RuntimeError(f"{url} did not answer within {timeout_s:g} s")


def body_text(way: Way, tokens: int, stream: bool) -> str:
    """The JSON text of a request."""
    return json.dumps(way.body(tokens, stream), separators=(",", ":"))
