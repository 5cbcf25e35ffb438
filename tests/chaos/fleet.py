"""The tiers as processes that a row of the fault suite kills, stops and starts again.

Knows nothing of load or promises. Its waits do not block the loop that the clients share with it.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from tests.chaos.clock import Clock, library
from tests.chaos.heartbeats import HeartbeatProxy
from tests.chaos.network import network_between
from tests.stack.processes import Tier, free_port

TINY = ("--dtype", "float32", "--model-names", "tiny")
"""The embedded demo model on the paged engine."""


@dataclass(frozen=True)
class Shape:
    """What a fleet consists of; rows of the same shape share one.

    Attributes:
        streams, plain: clients; None takes what the scale says.
        heartbeats_by_proxy: workers reach the controllers through proxies that can harm them.
        first_worker_apart: the first worker is behind a network that can be cut.
        clocks: each tier has a wall clock of its own, where that can be done.
    """

    controllers: int = 2
    gateways: int = 2
    workers: int = 3
    worker_args: tuple[str, ...] = ("--engine", "sim")
    gateway_args: tuple[str, ...] = ()
    controller_args: tuple[str, ...] = ()
    model: str = "sim"
    streams: int | None = None
    plain: int | None = None
    heartbeats_by_proxy: bool = False
    first_worker_apart: bool = False
    clocks: bool = False


class Program:
    """One place of a tier: a port, the flags, and the process that serves there now, if any."""

    def __init__(self, tier: str, folder: Path, *args: str) -> None:
        self.tier = tier
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.args = args
        self.prefix: tuple[str, ...] = ()
        self.stopped = False
        self.killed = False
        self.lives = 0
        self._folder = folder
        self._process: Tier | None = None

    @property
    def process(self) -> Tier:
        assert self._process is not None, f"{self.tier} was never started"
        return self._process

    @property
    def pid(self) -> int:
        return self.process.process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.process.poll() is None

    def start(self, *args: str) -> None:
        """A new process on the same port; other flags than before when some are given."""
        self.lives += 1
        log = self._folder / f"{self.tier}-{self.port}-{self.lives}.log"
        self._process = Tier(
            self.tier, log, *(args or self.args), port=self.port, prefix=self.prefix
        )
        self.stopped = self.killed = False

    def send(self, number: signal.Signals) -> None:
        self.process.process.send_signal(number)
        if number in (signal.SIGSTOP, signal.SIGCONT):
            self.stopped = number == signal.SIGSTOP

    async def ended(self, timeout_s: float = 30.0) -> int:
        """The exit code, once it has one."""
        return await asyncio.to_thread(self.process.process.wait, timeout_s)

    def kill(self) -> None:
        """SIGKILL, and reap it."""
        if self._process is not None:
            self.killed = True
            self._process.kill()


class Fleet:
    """Controllers, gateways and workers, each worker and gateway with all controllers."""

    def __init__(self, shape: Shape, folder: Path, http: aiohttp.ClientSession) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.shape = shape
        self.http = http
        self.folder = folder
        self.controllers = [
            Program("controller", folder, *shape.controller_args) for _ in range(shape.controllers)
        ]
        urls = [one.url for one in self.controllers]
        self.proxies = [HeartbeatProxy(url) for url in urls] if shape.heartbeats_by_proxy else []
        at = ("--controller-address", ",".join(urls))
        self.gateways = [
            Program("gateway", folder, *at, *shape.gateway_args) for _ in range(shape.gateways)
        ]
        reached = [proxy.url for proxy in self.proxies] or urls
        to = ("--controller-address", ",".join(reached))
        self.workers = [
            Program("worker", folder, *to, *shape.worker_args) for _ in range(shape.workers)
        ]
        self.network = network_between(self.workers[0].port) if shape.first_worker_apart else None
        if self.network is not None:
            first = self.workers[0]
            first.url, first.prefix = self.network.worker_url, self.network.prefix
            # it still reaches the controllers where it did, or under another address of theirs
            ports = [one.port for one in self.controllers]
            at_controllers = ",".join(self.network.controller_url(port) for port in ports)
            options = ("--controller-address", at_controllers, *self.network.worker_args)
            first.args = (*options, *shape.worker_args)
            for controller in self.controllers:
                controller.args = (*controller.args, *self.network.controller_args)

        self.clocks: dict[str, Clock] = {}
        if shape.clocks and (faketime := library()) is not None:
            tiers = {program.tier for program in self.programs}
            self.clocks = {tier: Clock(folder / f"{tier}.clock", faketime) for tier in tiers}
            for program in self.programs:
                program.prefix = self.clocks[program.tier].prefix

    @property
    def programs(self) -> list[Program]:
        return [*self.controllers, *self.gateways, *self.workers]

    async def heal(self, timeout_s: float = 60.0) -> None:
        """Start what does not run, continue what stands still, wait until all know of all."""
        for proxy in self.proxies:
            await proxy.start()
        if self.network is not None:
            await self.network.start()
            self.network.mend()
        for program in self.programs:
            if program.stopped:
                program.send(signal.SIGCONT)
            if not program.alive:
                program.start()
        await self.whole(timeout_s)

    async def whole(self, timeout_s: float = 60.0) -> None:
        """Until every gateway can use every worker."""

        async def all_there() -> bool:
            for program in self.programs:
                if not program.alive:
                    log = program.process.log.read_text(errors="replace")[-1500:]
                    raise RuntimeError(f"a {program.tier} ended by itself:\n{log}")
            for program in (*self.workers, *self.gateways):
                if not await self.answers(program, "/readyz"):
                    return False
            for gateway in self.gateways:
                if await self.ready_workers(gateway) != len(self.workers):
                    return False
            # one that was killed a moment ago may still be listed beside its successor
            listed = [await self.listed(controller) for controller in self.controllers]
            return all(one == {worker.url for worker in self.workers} for one in listed)

        await until(all_there, timeout_s, "the fleet is not whole")

    async def answers(self, program: Program, path: str, timeout_s: float = 2.0) -> bool:
        """Whether a GET gives 200."""
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self.http.get(program.url + path, timeout=timeout) as answer:
                await answer.read()
                return answer.status == 200
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False

    async def listed(self, controller: Program) -> set[str]:
        """Addresses of the ready workers that a controller lists."""
        async with self.http.get(f"{controller.url}/fleet") as answer:
            fleet = await answer.json()
        return {one["address"] for one in fleet["workers"] if one["state"] == "ready"}

    async def ready_workers(self, gateway: Program) -> float:
        return await self.metric([gateway], "trireme_gateway_fleet_workers", labels='state="ready"')

    async def metric(self, programs: Iterable[Program], *names: str, labels: str = "") -> float:
        """The sum of these metrics over all of their labels, or over those that have `labels`.

        A metric without any series yet is 0.
        """
        total = 0.0
        for program in programs:
            async with self.http.get(f"{program.url}/metrics") as answer:
                lines = (await answer.text()).splitlines()
            for line in lines:
                if line.startswith("#") or labels not in line:
                    continue
                if line.partition("{")[0].partition(" ")[0] in names:
                    total += float(line.rsplit(" ", 1)[1])
        return total

    async def close(self) -> None:
        """End everything at once."""
        for program in reversed(self.programs):
            program.kill()
        for proxy in self.proxies:
            await proxy.close()
        if self.network is not None:
            await self.network.close()


async def until(
    condition: Callable[[], Awaitable[bool]],
    timeout_s: float,
    what: str,
    *,
    every_s: float = 0.05,
) -> float:
    """Wait for a condition; the seconds that it took.

    Raises:
        TimeoutError: with `what` did not come true.
    """
    begun = time.monotonic()
    while True:
        if await condition():
            return time.monotonic() - begun
        if time.monotonic() - begun > timeout_s:
            raise TimeoutError(f"{what} after {timeout_s:g} s")
        await asyncio.sleep(every_s)
