"""A lean load generator: closed loop over raw HTTP/1.1 connections, in a process of its own.

It knows no JSON: answers are checked by the marks that a target leaves in its body, so that the
client costs a fraction of what it measures. Run as `python -m benchmarks.gateway_load SPEC-JSON`;
the result is one JSON object on stdout.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import sys
import time
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

import httptools
import psutil
import uvloop

NUMBER: Final = "@@@@@@@@"
"""Stands for a request's number, eight digits, so that no two prompts begin alike."""


@dataclass(frozen=True, slots=True)
class Spec:
    """One load on one target.

    Attributes:
        body: JSON text; `NUMBER` in it is replaced.
        mark: bytes that each piece of an answer has once; counted.
        end: bytes that a whole answer has.
        pieces: how many pieces an answer must have; 0 takes any number.
        clients: connections, each with one request at a time.
        warm_s, seconds: what is not counted at first, and what is counted then.
        think_s: mean pause of a client before a request, evenly spread from 0 to twice of it.
        pids: whose CPU seconds are told, by name; their children count with them.
    """

    url: str
    body: str
    mark: str
    end: str
    pieces: int
    clients: int
    seconds: float
    warm_s: float = 1.0
    think_s: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    pids: dict[str, list[int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Load:
    """What came of it, within the counted seconds. Times in milliseconds.

    Attributes:
        failed: requests without a right answer; they count in nothing else.
        cpu_s: CPU seconds by name; `client` is this process.
        first, whole, gaps: (p50, p99) to the first piece, to the end, between two pieces.
    """

    clients: int
    seconds: float
    requests: int
    failed: int
    first_error: str
    pieces: int
    first_ms: tuple[float, float]
    whole_ms: tuple[float, float]
    gaps_ms: tuple[float, float]
    cpu_s: dict[str, float]


class Connection(asyncio.Protocol):
    """One client: a keep-alive connection that carries its requests one after the other."""

    def __init__(self, spec: Spec) -> None:
        self._mark, self._end = spec.mark.encode(), spec.end.encode()
        self._overlap = max(len(self._mark), len(self._end)) - 1
        self._parser: Any = None
        self._transport: Any = None
        self._done: asyncio.Future[str] | None = None
        self._tail = b""
        self._error = b""
        self._ended = False
        self.arrivals: list[float] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    @property
    def open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def ask(self, request: bytes) -> asyncio.Future[str]:
        """Send; the future's result is what is wrong with the answer, or empty."""
        self._parser = httptools.HttpResponseParser(self)
        self._tail, self._error, self._ended = b"", b"", False
        self.arrivals = []
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._done

    def data_received(self, data: bytes) -> None:
        if self._parser is not None:
            self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        if self._parser.get_status_code() != 200:
            self._error += body
            return
        text = self._tail + body
        # a mark that lies in the tail alone was counted with the piece before
        found = text.count(self._mark) - self._tail.count(self._mark)
        if found:
            now = time.perf_counter()
            self.arrivals.extend([now] * found)
        self._ended = self._ended or self._end in text
        self._tail = text[-self._overlap :]

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status != 200:
            self._finish(f"HTTP {status}: {self._error[:200]!r}")
        else:
            self._finish("" if self._ended else f"no end: …{self._tail!r}")

    def connection_lost(self, error: Exception | None) -> None:
        self._finish(f"the connection was closed: {error!r}")

    def _finish(self, error: str) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(error)


class Tally:
    """Gathers what falls into the counted window."""

    def __init__(self, spec: Spec, opens_s: float) -> None:
        self._spec = spec
        self._opens_s, self._closes_s = opens_s, opens_s + spec.seconds
        self._first, self._whole, self._gaps = array("d"), array("d"), array("d")
        self.requests = self.failed = self.pieces = 0
        self.first_error = ""

    def take(self, begun_s: float, ended_s: float, arrivals: Sequence[float], error: str) -> None:
        """One answer: counted as a request where it ended, its pieces where they came."""
        expected = self._spec.pieces
        if not error and expected and len(arrivals) != expected:
            error = f"{len(arrivals)} pieces, not {expected}"
        if error:
            self.failed += 1
            self.first_error = self.first_error or error
            return
        within = [at for at in arrivals if self._opens_s <= at < self._closes_s]
        self.pieces += len(within)
        self._gaps.extend(b - a for a, b in itertools.pairwise(within))
        if self._opens_s <= ended_s < self._closes_s:
            self.requests += 1
        if self._opens_s <= begun_s < self._closes_s:
            self._whole.append(ended_s - begun_s)
            if arrivals:
                self._first.append(arrivals[0] - begun_s)

    def load(self, cpu_s: dict[str, float]) -> Load:
        return Load(
            clients=self._spec.clients,
            seconds=self._spec.seconds,
            requests=self.requests,
            failed=self.failed,
            first_error=self.first_error,
            pieces=self.pieces,
            first_ms=_p50_p99(self._first),
            whole_ms=_p50_p99(self._whole),
            gaps_ms=_p50_p99(self._gaps),
            cpu_s=cpu_s,
        )


def _p50_p99(values: array[float]) -> tuple[float, float]:
    ranked = sorted(values)
    if not ranked:
        return 0.0, 0.0
    return 1000 * ranked[len(ranked) // 2], 1000 * ranked[
        min(len(ranked) - 1, len(ranked) * 99 // 100)
    ]


async def generate(spec: Spec) -> Load:
    """Run the load; all requests that were begun are waited for."""
    loop = asyncio.get_running_loop()
    parts = urlsplit(spec.url)
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    extra = "".join(f"{name}: {value}\r\n" for name, value in spec.headers.items())
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        f"{extra}Content-Length: {len(spec.body.encode())}\r\n\r\n"
    )
    template = (head + spec.body).encode()
    opens_s = time.perf_counter() + spec.warm_s
    stops_s = opens_s + spec.seconds
    tally = Tally(spec, opens_s)
    numbers = itertools.count(random.randrange(10**7, 5 * 10**7))  # runs share no prompt
    rng = random.Random(0)

    async def client() -> None:
        connection: Connection | None = None
        await asyncio.sleep(rng.uniform(0, min(spec.warm_s, 0.5)))
        while time.perf_counter() < stops_s:
            if spec.think_s:
                await asyncio.sleep(rng.uniform(0, 2 * spec.think_s))
            if connection is None or not connection.open:
                _, connection = await loop.create_connection(
                    lambda: Connection(spec), parts.hostname or "", parts.port or 80
                )
            request = template.replace(NUMBER.encode(), b"%08d" % next(numbers))
            begun_s = time.perf_counter()
            error = await connection.ask(request)
            tally.take(begun_s, time.perf_counter(), connection.arrivals, error)

    async def cpu() -> dict[str, float]:
        await asyncio.sleep(max(0.0, opens_s - time.perf_counter()))
        before = _cpu_s(spec.pids)
        await asyncio.sleep(max(0.0, stops_s - time.perf_counter()))
        after = _cpu_s(spec.pids)
        return {name: after[name] - before[name] for name in after}

    watching = asyncio.create_task(cpu())
    await asyncio.gather(*(client() for _ in range(spec.clients)))
    return tally.load(await watching)


def _cpu_s(pids: dict[str, list[int]]) -> dict[str, float]:
    """CPU seconds so far, user and system, of processes and of their live descendants."""
    found = {"client": sum(psutil.Process().cpu_times()[:2])}
    for name, roots in pids.items():
        processes = [psutil.Process(pid) for pid in roots]
        processes += [child for one in processes for child in one.children(recursive=True)]
        found[name] = sum(sum(one.cpu_times()[:2]) for one in processes)
    return found


def main() -> None:
    spec = Spec(**json.loads(sys.argv[1]))
    print(json.dumps(asdict(uvloop.run(generate(spec)))))


if __name__ == "__main__":
    main()
