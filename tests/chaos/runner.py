"""Plays rows: makes the fleet that a row needs, loads it, looks at what is left afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import time
import traceback
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import aiohttp

from tests.chaos.fleet import Fleet, Shape, until
from tests.chaos.load import Load, Tally, undisturbed
from tests.chaos.questions import questions
from tests.chaos.scene import Alone, Result, Row, Scale, Scene

Say = Callable[[str], None]
GATEWAY_GAUGES = ("trireme_gateway_requests_in_flight", "trireme_gateway_in_flight_drift")
WORKER_GAUGES = (
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
)
EMPTY_WITHIN_S = 3.0


async def play(
    rows: Sequence[Row | Alone], scale: Scale, folder: Path, say: Say
) -> AsyncIterator[Result]:
    """The rows one after the other; neighbours of the same shape share a fleet.

    Args:
        say: told what happens now.
    """
    async with contextlib.AsyncExitStack() as cleanup:
        shape: Shape | None = None
        stage = contextlib.AsyncExitStack()
        cleanup.push_async_callback(lambda: stage.aclose())
        for number, row in enumerate(rows):
            result = Result(row.name, row.fault, row.promise.text)
            begun = time.monotonic()
            say(f"{row.name}: {row.fault}")
            try:
                if isinstance(row, Alone):
                    await stage.aclose()
                    shape = None
                    await row.play(scale, folder / row.name, result)
                else:
                    wanted = row.shape(scale)
                    if wanted != shape:
                        await stage.aclose()
                        shape, stage = None, contextlib.AsyncExitStack()
                        fleet, load = await stage.enter_async_context(
                            _staged(wanted, scale, folder / f"fleet-{number}", say)
                        )
                        shape = wanted
                    await _play_one(row, fleet, load, scale, result)
            except Exception as error:  # a row that cannot be played is a promise not shown
                where = traceback.extract_tb(error.__traceback__)[-1]
                place = f"{Path(where.filename).name}:{where.lineno}"
                result.broken.append(f"{type(error).__name__} at {place}: {error}")
                await stage.aclose()
                shape = None
            result.seconds = time.monotonic() - begun
            yield result


@contextlib.asynccontextmanager
async def _staged(
    shape: Shape, scale: Scale, folder: Path, say: Say
) -> AsyncIterator[tuple[Fleet, Load]]:
    """A fleet that is whole, and its clients, who wait."""
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=None, connect=5.0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
        fleet = Fleet(shape, folder, http)
        try:
            count = f"{shape.controllers} controllers, {shape.gateways} gateways"
            say(f"starting {count}, {shape.workers} workers")
            await fleet.heal()
            asked = questions(shape.model)
            whole = await undisturbed(http, fleet.gateways[0].url, asked)
            streams = scale.streams if shape.streams is None else shape.streams
            plain = scale.plain if shape.plain is None else shape.plain
            load = Load(fleet, asked, whole, streams=streams, plain=plain)
            async with load:
                yield fleet, load
        finally:
            await fleet.close()


async def _play_one(row: Row, fleet: Fleet, load: Load, scale: Scale, result: Result) -> None:
    await fleet.heal()
    load.tally = result.tally = Tally()
    scene = Scene(fleet, load, scale, result)
    try:
        if row.loaded:
            load.resume()
            await asyncio.sleep(scale.warm_s)
            load.check()
        await row.play(scene)
        await load.settle()
        await load.pause()
    finally:
        load.stop_asking()
    gap_s = row.promise.gap_s
    if gap_s is not None and load.tally.worst_gap_s > gap_s * scale.slack:
        result.broken.append(f"a gap of {load.tally.worst_gap_s:.3f} s, not {gap_s:g} s")
    await _expect_empty(fleet, result)


async def _expect_empty(fleet: Fleet, result: Result) -> None:
    """With the load paused nothing is in flight anywhere, and no counter has drifted."""
    gateways = [one for one in fleet.gateways if one.alive and not one.stopped]
    workers = [one for one in fleet.workers if one.alive and not one.stopped]

    async def empty() -> bool:
        held = await fleet.metric(gateways, *GATEWAY_GAUGES)
        return not held and not await fleet.metric(workers, *WORKER_GAUGES)

    try:
        await until(empty, EMPTY_WITHIN_S, "not empty")
    except TimeoutError:
        for programs, names in ((gateways, GATEWAY_GAUGES), (workers, WORKER_GAUGES)):
            for name in names:
                if left := await fleet.metric(programs, name):
                    result.broken.append(f"{name} is {left:g} with the load paused")
