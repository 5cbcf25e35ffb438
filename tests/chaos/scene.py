"""What a row of the fault suite is, what it promises, and what it measures with."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp

from tests.chaos.fleet import Fleet, Program, Shape, until
from tests.chaos.load import Load, Tally

LEFT_A_WORKER = " failed a request: "
"""What a gateway logs at the moment at which it resumes a request or sends it elsewhere."""
WENT_ELSEWHERE = ("trireme_gateway_resumed_total", "trireme_gateway_retries_total")


@dataclass(frozen=True)
class Scale:
    """How much of everything; `slack` multiplies the promised times, for a machine that is busy."""

    streams: int = 50
    plain: int = 20
    sim_tokens: int = 200
    warm_s: float = 3.0
    controllers_down_s: float = 60.0
    heartbeats_s: float = 30.0
    disconnects: int = 40
    stopped_readers: int = 20
    kills: int = 100
    pool: int = 4
    aborts: int = 10_000
    real_aborts: int = 500
    slack: float = 1.0


SHORT = Scale(
    streams=16,
    plain=4,
    sim_tokens=100,
    warm_s=1.5,
    controllers_down_s=7.0,
    heartbeats_s=8.0,
    disconnects=8,
    stopped_readers=4,
    kills=8,
    aborts=500,
    real_aborts=60,
)


def sim_fleet(scale: Scale, **fields: Any) -> Shape:
    """Two controllers, two gateways, three simulated workers: five seconds for each answer."""
    args = ("--engine", "sim", "--sim-tokens", str(scale.sim_tokens), "--sim-ttft-ms", "200")
    # more than the balancer's check takes, as docs/operations.md has it
    delay = ("--drain-delay-s", "2")
    return Shape(worker_args=(*args, "--sim-itl-ms", "25"), gateway_args=delay, **fields)


@dataclass(frozen=True)
class Promise:
    """What docs/reliability.md says: in words, and the figures that are compared."""

    text: str
    gap_s: float | None = None


@dataclass
class Measured:
    """A time that was promised: how long something took, and how long it may."""

    what: str
    seconds: float
    bound_s: float | None


@dataclass
class Result:
    """What came of one row."""

    name: str
    fault: str
    promise: str
    tally: Tally = field(default_factory=Tally)
    times: list[Measured] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    skipped: str = ""
    seconds: float = 0.0

    @property
    def lost(self) -> bool:
        """Whether a request was lost, or an answer was not the undisturbed one."""
        return bool(self.tally.lost or self.tally.differing)

    @property
    def verdict(self) -> str:
        if self.skipped:
            return "skipped"
        return "LOST" if self.lost else "missed" if self.broken else "kept"

    def as_json(self) -> dict[str, Any]:
        tally = {name: value for name, value in vars(self.tally).items() if name != "gaps"}
        return {
            **{name: value for name, value in vars(self).items() if name not in ("tally", "times")},
            **tally,
            "times": [vars(one) for one in self.times],
            "verdict": self.verdict,
        }


class Scene:
    """What a row plays with."""

    def __init__(self, fleet: Fleet, load: Load, scale: Scale, result: Result) -> None:
        self.fleet = fleet
        self.load = load
        self.scale = scale
        self.result = result
        self._at_s = time.monotonic()
        self._wall_s = time.time()

    @property
    def http(self) -> aiohttp.ClientSession:
        return self.fleet.http

    async def strike(self, act: Callable[[], object]) -> None:
        """Do the harm; times are counted from now."""
        self._at_s, self._wall_s = time.monotonic(), time.time()
        act()

    def measured(self, what: str, seconds: float, bound_s: float | None = None) -> None:
        """Note a time; one above its bound breaks the promise."""
        self.result.times.append(Measured(what, seconds, bound_s))
        if bound_s is not None and seconds > bound_s * self.scale.slack:
            self.result.broken.append(f"{what} took {seconds:.3f} s, not {bound_s:g} s")

    def expect(self, kept: bool, otherwise: str) -> None:
        """Something that was promised beside the times."""
        if not kept:
            self.result.broken.append(otherwise)

    def note(self, text: str) -> None:
        self.result.notes.append(text)

    async def found_by_traffic(self, bound_s: float | None) -> None:
        """Until the first request was resumed or sent elsewhere, since the strike.

        The time is the one that the gateway logged: the clients here share two cores with it.
        """

        async def found() -> bool:
            return self._first_failure_s() is not None

        try:
            await until(found, 60.0, "traffic", every_s=0.02)
        except TimeoutError as error:
            self.result.broken.append(str(error))
        else:
            self.measured("traffic", (self._first_failure_s() or 0) - self._wall_s, bound_s)

    async def found_by_lease(self, bound_s: float | None, workers: int) -> None:
        """Until no gateway has more than so many workers to choose from."""

        async def found() -> bool:
            for gateway in self.fleet.gateways:
                if gateway.alive and await self.fleet.ready_workers(gateway) > workers:
                    return False
            return True

        await self.when("lease", found, bound_s)

    async def when(
        self,
        what: str,
        condition: Callable[[], Awaitable[bool]],
        bound_s: float | None,
    ) -> None:
        """Until a condition holds, since the strike."""
        try:
            await until(condition, 60.0, what)
        except TimeoutError as error:
            self.result.broken.append(str(error))
        else:
            self.measured(what, time.monotonic() - self._at_s, bound_s)

    def _first_failure_s(self) -> float | None:
        """Unix seconds of the first request that left a worker since the strike."""
        found = []
        for gateway in self.fleet.gateways:
            for line in gateway.process.log.read_text(errors="replace").splitlines():
                if LEFT_A_WORKER in line:
                    logged = datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f").timestamp()
                    if logged >= int(1000 * self._wall_s) / 1000:
                        found.append(logged)
        return min(found, default=None)

    async def busiest(self, programs: list[Program] | None = None) -> Program:
        """The worker with most sequences in its batch."""
        found = [
            (await self.fleet.metric([one], "vllm:num_requests_running"), one)
            for one in programs or self.fleet.workers
        ]
        return max(found, key=lambda pair: pair[0])[1]


Play = Callable[[Scene], Awaitable[None]]


@dataclass(frozen=True)
class Row:
    """One fault.

    Attributes:
        shape: the fleet that it needs; rows with the same one share it.
        loaded: whether the clients ask from the start.
    """

    name: str
    fault: str
    promise: Promise
    play: Play
    shape: Callable[[Scale], Shape] = sim_fleet
    loaded: bool = True


@dataclass(frozen=True)
class Alone:
    """A check with processes and clients of its own; it fills in the result."""

    name: str
    fault: str
    promise: Promise
    play: Callable[[Scale, Path, Result], Awaitable[None]]
