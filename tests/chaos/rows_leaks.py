"""After thousands of aborts and errors everything that was taken has been given back."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import psutil

from tests.chaos.abuse import Kind, Seen, abuse, kinds
from tests.chaos.fleet import TINY, Fleet, Program, Shape, until
from tests.chaos.runner import GATEWAY_GAUGES, WORKER_GAUGES
from tests.chaos.scene import Alone, Promise, Result, Scale

CLIENTS = 32
WARM_SHARE = 0.2
MAX_GROWTH_MIB = 24.0
TORCH_MIB = 450.0
"""What torch and oneDNN keep by shapes of batches (docs/reliability.md)."""
IDLE_CONNECTION_S = 80.0
"""A worker drops a connection of the gateway's that nobody used for 75 s."""


@dataclass(frozen=True)
class Held:
    """What a process holds, its children's included."""

    files: int
    sockets: int
    threads: int
    memory_mib: float

    @classmethod
    def by(cls, program: Program) -> Held:
        root = psutil.Process(program.pid)
        processes = [root, *root.children(recursive=True)]
        return cls(
            files=sum(one.num_fds() for one in processes),
            sockets=sum(len(one.net_connections("tcp")) for one in processes),
            threads=sum(one.num_threads() for one in processes),
            memory_mib=sum(one.memory_info().rss for one in processes) / 2**20,
        )


async def simulated(scale: Scale, folder: Path, result: Result) -> None:
    args = tuple("--engine sim --sim-itl-ms 3 --sim-ttft-ms 10 --sim-max-running 24".split())
    chosen = kinds("sim", 32768, grammars=False)
    await _leak(args, chosen, scale.aborts, folder, result, leave_within_s=0.15)


async def generated(scale: Scale, folder: Path, result: Result) -> None:
    chosen = kinds("tiny", 2048, grammars=True)
    small_cache = (*TINY, "--kv-cache-gb", "0.03")  # all of its pages are touched soon
    await _leak(small_cache, chosen, scale.real_aborts, folder, result, leave_within_s=0.5)


async def _leak(
    args: tuple[str, ...],
    chosen: dict[str, Kind],
    count: int,
    folder: Path,
    result: Result,
    *,
    leave_within_s: float,
) -> None:
    shape = Shape(controllers=1, gateways=1, workers=1, worker_args=args)
    # what this program itself keeps open does not count
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(connector=connector) as http:
        fleet = Fleet(shape, folder, http)
        try:
            await fleet.heal(120.0)
            await _abused(fleet, chosen, count, result, leave_within_s)
        finally:
            await fleet.close()


async def _abused(
    fleet: Fleet, chosen: dict[str, Kind], count: int, result: Result, leave_within_s: float
) -> None:
    gateway, worker = fleet.gateways[0], fleet.workers[0]
    loads_torch = "sim" not in fleet.shape.worker_args
    watched = [gateway, worker]
    warm = max(2 * CLIENTS, int(count * WARM_SHARE))
    fresh = [Held.by(one) for one in watched]

    async def ask(number: int, seed: int) -> Seen:
        return await abuse(
            gateway.url,
            chosen,
            number,
            clients=CLIENTS,
            seed=seed,
            leave_within_s=leave_within_s,
        )

    first = await ask(warm, 1)
    await _empty(fleet, result)
    warmed = [Held.by(one) for one in watched]
    begun = time.monotonic()
    seen = await ask(count, 2)
    seconds = time.monotonic() - begun
    await _empty(fleet, result)
    after = [Held.by(one) for one in watched]
    result.tally.requests = warm + count
    result.tally.lost = len(first.faults) + len(seen.faults)
    for fault in (*first.faults, *seen.faults):
        result.tally.fault(fault)
    statuses = ", ".join(f"{number} {name}" for name, number in sorted(seen.statuses.items()))
    result.notes.append(f"{count / seconds:.0f} requests a second: {statuses}")
    for program, warm_held, held in zip(watched, warmed, after, strict=True):
        grown = held.memory_mib - warm_held.memory_mib
        memory = f"{held.memory_mib:.0f} MiB, {grown:+.1f} since it was warm"
        result.notes.append(f"{program.tier}: {memory}; {held.files} files, {held.threads} threads")
        if grown > MAX_GROWTH_MIB + (TORCH_MIB if loads_torch and program is worker else 0):
            result.broken.append(f"the {program.tier} grew by {grown:.1f} MiB")
    await _given_back(watched, fresh, result, count)


async def _given_back(
    watched: list[Program], fresh: list[Held], result: Result, count: int
) -> None:
    """Files and sockets as at the start: idle connections between the tiers run out by themselves,
    so a short run only compares what nobody may keep."""
    patient = count >= 5000

    async def as_before() -> bool:
        return all(
            Held.by(one).files <= before.files for one, before in zip(watched, fresh, strict=True)
        )

    try:
        await until(as_before, IDLE_CONNECTION_S if patient else 0.0, "files are open", every_s=1.0)
    except TimeoutError as error:
        for program, before in zip(watched, fresh, strict=True):
            held = Held.by(program)
            extra = held.files - before.files
            # a short run leaves pooled connections, one for each client at most
            if extra > (0 if patient else CLIENTS):
                result.broken.append(f"{error}: {program.tier} has {held}, had {before}")


async def _empty(fleet: Fleet, result: Result) -> None:
    async def empty() -> bool:
        held = await fleet.metric(fleet.gateways, *GATEWAY_GAUGES)
        return not held and not await fleet.metric(fleet.workers, *WORKER_GAUGES)

    try:
        seconds = await until(empty, 5.0, "not empty", every_s=0.02)
    except TimeoutError:
        for programs, names in ((fleet.gateways, GATEWAY_GAUGES), (fleet.workers, WORKER_GAUGES)):
            for name in names:
                if left := await fleet.metric(programs, name):
                    result.broken.append(f"{name} is {left:g} afterwards")
    else:
        result.notes.append(f"all gauges 0 after {1000 * seconds:.0f} ms")
    await asyncio.sleep(0.1)


ROWS = [
    Alone(
        "leak-sim",
        "aborts and errors, simulated engine",
        Promise("slots, counters, sockets, memory as at the start"),
        simulated,
    ),
    Alone(
        "leak-real",
        "aborts and errors, a real model",
        Promise("KV blocks, counters, sockets, memory as at the start"),
        generated,
    ),
]
