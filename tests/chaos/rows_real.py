"""A real model in float32: whole workers killed in mid-stream, engines that stand still."""

from __future__ import annotations

import asyncio
import random
import signal
from pathlib import Path

import aiohttp
import psutil

from tests.chaos.fleet import TINY, Fleet, Program, Shape, until
from tests.chaos.load import ask_and_compare, undisturbed
from tests.chaos.questions import Answer, Question, questions
from tests.chaos.scene import WENT_ELSEWHERE, Alone, Promise, Result, Row, Scale, Scene

AT_ONCE = 8
FOUND_S = 12.0
ENGINE_GONE_S = 0.5


async def kills(scale: Scale, folder: Path, result: Result) -> None:
    """Answers run on all workers; the busiest one dies when one of them has some tokens.

    A kill counts when it hit an answer. Killed workers load again while the others serve.
    """
    shape = Shape(controllers=1, gateways=1, workers=scale.pool, worker_args=TINY, model="tiny")
    rng = random.Random(5)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        fleet = Fleet(shape, folder, http)
        try:
            await fleet.heal(200.0)
            gateway = fleet.gateways[0]
            asked = questions("tiny")
            whole = {}
            for question in asked:  # one at a time: nothing else is in the batch
                whole |= await undisturbed(http, gateway.url, [question])
            counted = tried = answers = 0
            while counted < scale.kills:
                await _two_are_ready(fleet)
                tried += 1
                before = await fleet.metric([gateway], *WENT_ELSEWHERE)
                await _round(fleet, rng, asked, whole, result, restart=scale.kills >= scale.pool)
                hit = await fleet.metric([gateway], *WENT_ELSEWHERE) - before
                counted += hit > 0
                answers += int(hit)
            result.notes.append(f"{counted} kills hit {answers} answers, of {tried} kills")
            held = await fleet.metric([gateway], "trireme_gateway_requests_in_flight")
            if held:
                result.broken.append(f"{held:g} requests in flight afterwards")
        finally:
            await fleet.close()


async def _two_are_ready(fleet: Fleet) -> None:
    """One to kill and one to go on; what the fleet still holds of a dead one does not count."""

    async def two() -> bool:
        listed = await fleet.listed(fleet.controllers[0])
        return sum(w.url in listed for w in await _ready(fleet)) >= 2

    await until(two, 120.0, "no two workers are ready")
    await asyncio.sleep(0.5)  # the newcomer has registered, and the gateway has heard of it


async def _ready(fleet: Fleet) -> list[Program]:
    alive = [worker for worker in fleet.workers if worker.alive]
    return [worker for worker in alive if await fleet.answers(worker, "/readyz")]


async def _round(
    fleet: Fleet,
    rng: random.Random,
    asked: list[Question],
    whole: dict[str, Answer],
    result: Result,
    *,
    restart: bool,
) -> None:
    """Some answers at once; a worker dies behind a token of one of them."""
    due = asyncio.Event()
    left = rng.randint(1, 60 * AT_ONCE)

    def on_delta() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            due.set()

    url = fleet.gateways[0].url
    answers = [
        asyncio.create_task(
            ask_and_compare(fleet.http, url, one, whole[one.name], result.tally, on_delta)
        )
        for one in rng.sample(asked, AT_ONCE)
    ]
    striking = asyncio.create_task(due.wait())
    await asyncio.wait([striking, *answers[:1]], return_when=asyncio.FIRST_COMPLETED)
    striking.cancel()
    victim = await _busiest(fleet)
    victim.kill()
    await asyncio.gather(*answers)
    if restart:
        victim.start()


async def _busiest(fleet: Fleet) -> Program:
    counts = {
        worker: await fleet.metric([worker], "vllm:num_requests_running")
        for worker in await _ready(fleet)
    }
    return max(counts, key=lambda one: counts[one])


def real_fleet(_scale: Scale) -> Shape:
    """Two workers with the demo model, and few clients: it shares the cores with them."""
    return Shape(workers=2, worker_args=TINY, model="tiny", streams=6, plain=2)


def engine_of(worker: Program) -> psutil.Process:
    """The process in which its model runs."""
    children = psutil.Process(worker.pid).children()
    [engine] = [one for one in children if "worker.engine.child" in one.cmdline()]
    return engine


async def engine_stands_still(scene: Scene) -> None:
    """HTTP answers, the engine does not: its step counter tells."""
    victim = await scene.busiest()
    engine = engine_of(victim)
    await scene.strike(lambda: engine.send_signal(signal.SIGSTOP))
    await scene.found_by_lease(FOUND_S, workers=1)
    await scene.found_by_traffic(FOUND_S)
    await scene.load.settle()

    async def serves_again() -> bool:
        return await scene.fleet.answers(victim, "/readyz")

    await scene.when("engine new", serves_again, 60.0)


async def engine_dies(scene: Scene) -> None:
    victim = await scene.busiest()
    engine = engine_of(victim)
    await scene.strike(engine.kill)
    await scene.found_by_traffic(ENGINE_GONE_S)
    await scene.load.settle()

    async def serves_again() -> bool:
        return await scene.fleet.answers(victim, "/readyz")

    await scene.when("engine new", serves_again, 60.0)


ROWS = [
    Row(
        "engine-stop",
        "engine process SIGSTOP, HTTP answers",
        Promise("0 lost; found < 12 s by the step counter", gap_s=FOUND_S + 2.0),
        engine_stands_still,
        shape=real_fleet,
    ),
    Row(
        "engine-kill",
        "engine process SIGKILL",
        Promise("0 lost; found < 0.5 s", gap_s=2.0),
        engine_dies,
        shape=real_fleet,
    ),
    Alone(
        "real-kills",
        "workers of a real model SIGKILL in mid-stream",
        Promise("text equal to the unbroken run"),
        kills,
    ),
]
