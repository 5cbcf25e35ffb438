"""What a large fleet costs: the controller's CPU, a change's way to a gateway, a choice.

A thousand simulated workers, each a kept-alive connection that sends its whole record each second
with another load; a real gateway follows the controller. Run it with
`python -m benchmarks.controller --help`.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import aiohttp
import httptools
import psutil
import typer
import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.gateway_systems import children, wait_for
from benchmarks.machine import machine
from benchmarks.stack import free_port
from gateway.prefix import PrefixIndex, fingerprint
from gateway.routing import POLICIES, Group, InFlight, Query
from protocol.fleet import Load, ModelRecord, WorkerRecord
from protocol.generation import GenerateRequest

WORK: Final = Path(".trireme/bench")
console = Console()


def record(number: int, seq: int, rng: random.Random, model: str = "demo") -> WorkerRecord:
    """A worker under load, as a heartbeat tells it."""
    running = rng.randrange(32)
    return WorkerRecord(
        instance_id=f"{number:032x}",
        seq=seq,
        address=f"http://10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}:21002",
        models=(ModelRecord(name=model, digest="d" * 64, context_length=32768, engine="paged"),),
        load=Load(
            running=running,
            waiting=rng.randrange(4),
            waiting_tokens=rng.randrange(4000),
            kv_free=rng.random(),
            prefill_tps=5000 + rng.random(),
            decode_tps=900 + rng.random(),
            capacity=64,
        ),
        engine_step=seq * 40,
        busy=True,
        queue_length=running,
    )


class Beat(asyncio.Protocol):
    """A worker's connection to the controller."""

    def __init__(self) -> None:
        self._parser: Any = None
        self._transport: Any = None
        self._answered: asyncio.Future[int] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(self._parser.get_status_code())

    def put(self, one: WorkerRecord) -> asyncio.Future[int]:
        """Send a record; the result is the status."""
        body = one.model_dump_json().encode()
        head = (
            f"PUT /fleet/workers/{one.instance_id} HTTP/1.1\r\nHost: controller\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._parser = httptools.HttpResponseParser(self)
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.write(head.encode() + body)
        return self._answered


@dataclass(frozen=True, slots=True)
class Fleet:
    """What a repeat found.

    Attributes:
        beats: heartbeats that were answered in the counted seconds. refused: not with 200.
        answer_ms: (p50, p99) of a heartbeat's answer.
        cores: shares of a core, by process.
        joins_ms, leaves_ms: from the controller's answer to the gateway's knowledge.
    """

    workers: int
    seconds: float
    beats: int
    refused: int
    answer_ms: tuple[float, float]
    cores: dict[str, float]
    joins_ms: list[float]
    leaves_ms: list[float]


async def follow(
    controller: str, gateway: str, pids: dict[str, int], workers: int, seconds: float, changes: int
) -> Fleet:
    """Beat for so many workers, count after all are known, then measure changes meanwhile."""
    loop, rng = asyncio.get_running_loop(), random.Random(0)
    host, port = controller.removeprefix("http://").split(":")
    counting, refused = False, 0
    answers: list[float] = []

    async def worker(number: int) -> None:
        nonlocal refused
        _, connection = await loop.create_connection(Beat, host, int(port))
        due, seq = loop.time() + rng.random(), 0
        while True:
            await asyncio.sleep(max(0.0, due - loop.time()))
            due, seq = due + 1.0, seq + 1
            began = time.perf_counter()
            status = await connection.put(record(number, seq, rng))
            refused += status != 200
            if counting:
                answers.append(1000 * (time.perf_counter() - began))

    tasks = [asyncio.create_task(worker(number)) for number in range(workers)]
    async with aiohttp.ClientSession() as http:
        await asyncio.sleep(3.0)
        before, counting = _cpu(pids), True
        await asyncio.sleep(seconds)
        counting, after = False, _cpu(pids)
        joins, leaves = [], []
        for change in range(changes):
            model = f"new-{change}"
            extra = record(10**6 + change, 1, rng, model)
            at = f"{controller}/fleet/workers/{extra.instance_id}"
            async with http.put(at, data=extra.model_dump_json()) as answer:
                answer.raise_for_status()
            joins.append(await _until(http, f"{gateway}/v1/models/{model}", 200))
            async with http.delete(at) as answer:
                answer.raise_for_status()
            leaves.append(await _until(http, f"{gateway}/v1/models/{model}", 404))
            await asyncio.sleep(0.05 + rng.random() / 10)
    for task in tasks:
        task.cancel()
    failed = [one for one in await asyncio.gather(*tasks, return_exceptions=True) if one]
    if errors := [one for one in failed if not isinstance(one, asyncio.CancelledError)]:
        raise RuntimeError(f"{len(errors)} simulated workers failed: {errors[0]!r}")
    ranked = sorted(answers)
    return Fleet(
        workers=workers,
        seconds=seconds,
        beats=len(answers),
        refused=refused,
        answer_ms=(ranked[len(ranked) // 2], ranked[len(ranked) * 99 // 100]),
        cores={name: (after[name] - before[name]) / seconds for name in pids},
        joins_ms=joins,
        leaves_ms=leaves,
    )


async def _until(http: aiohttp.ClientSession, url: str, status: int) -> float:
    """Milliseconds until a GET has that status."""
    began = time.perf_counter()
    while time.perf_counter() - began < 10:
        async with http.get(url) as answer:
            if answer.status == status:
                return 1000 * (time.perf_counter() - began)
        await asyncio.sleep(0.002)
    raise RuntimeError(f"{url} did not answer {status} within 10 s")


def _cpu(pids: dict[str, int]) -> dict[str, float]:
    return {name: sum(psutil.Process(pid).cpu_times()[:2]) for name, pid in pids.items()}


def choices_us(workers: int, policy: str, rounds: int = 2000) -> float:
    """Microseconds of CPU to choose a worker, with requests in flight and a known prefix."""
    rng = random.Random(0)
    fleet = [record(number, 1, rng) for number in range(workers)]
    group, flights, index = Group(fleet), InFlight(), PrefixIndex()
    for _ in range(workers):
        flights.begin(rng.choice(fleet), rng.randrange(1000))
    request = GenerateRequest(request_id="r", model="demo", prompt="the river carries " * 200)
    prefix = fingerprint(request)
    index.record(prefix, fleet[workers // 2].instance_id)
    choose = POLICIES[policy]
    began = time.process_time()
    for _ in range(rounds):
        matched = index.matched_tokens(prefix, group.by_id)
        choose(Query(group, 900, flights.unreported, matched), rng)
    return 1e6 * (time.process_time() - began) / rounds


def one_repeat(workers: int, seconds: float, changes: int) -> Fleet:
    """Start a controller and a gateway, beat, stop."""
    controller, gateway = free_port(), free_port()
    at, through = f"http://127.0.0.1:{controller}", f"http://127.0.0.1:{gateway}"
    with children(WORK / "logs") as start:
        tiers = (
            start("controller", sys.executable, "-m", "controller", "--port", str(controller)),
            start(
                "gateway",
                *(sys.executable, "-m", "gateway", "--port", str(gateway)),
                *("--controller-address", at),
            ),
        )
        wait_for(f"{at}/readyz", tiers)
        wait_for(f"{through}/health", tiers)
        pids = {"controller": tiers[0].pid, "gateway": tiers[1].pid}
        return uvloop.run(follow(at, through, pids, workers, seconds, changes))


def table(runs: Sequence[Fleet], choices: dict[str, list[float]]) -> Table:
    """Medians, least and greatest."""
    shown = Table(title=f"{runs[0].workers} workers, a heartbeat each second")
    shown.add_column("")
    shown.add_column("median (least–greatest)", justify="right")

    def row(name: str, values: Sequence[float]) -> None:
        middle = statistics.median(values)
        shown.add_row(name, f"{middle:.3g} [dim]({min(values):.3g}–{max(values):.3g})[/dim]")

    row("heartbeats/s", [run.beats / run.seconds for run in runs])
    row("controller, share of a core", [run.cores["controller"] for run in runs])
    row("gateway that follows, share of a core", [run.cores["gateway"] for run in runs])
    row("heartbeat answered, p50 ms", [run.answer_ms[0] for run in runs])
    row("heartbeat answered, p99 ms", [run.answer_ms[1] for run in runs])
    row("a worker joins: gateway knows, ms", [ms for run in runs for ms in run.joins_ms])
    row("a worker leaves: gateway knows, ms", [ms for run in runs for ms in run.leaves_ms])
    for policy, values in choices.items():
        row(f"a choice by {policy}, us", values)
    shown.add_row("heartbeats refused", str(sum(run.refused for run in runs)))
    return shown


def main(
    workers: Annotated[int, typer.Option(min=1)] = 1000,
    seconds: Annotated[float, typer.Option(min=0.5, help="counted seconds of each run")] = 8.0,
    repeats: Annotated[int, typer.Option(min=1, help="3 or more for figures to report")] = 3,
    changes: Annotated[int, typer.Option(min=1, help="workers that join and leave")] = 10,
    out: Annotated[Path, typer.Option(help="JSON file for all runs")] = WORK / "controller.json",
) -> None:
    """Measure a controller with a large fleet."""
    choices = {
        policy: [choices_us(workers, policy, 200 if policy == "least_loaded" else 2000)]
        for policy in POLICIES
    }
    runs = []
    for _ in range(repeats):
        runs.append(one_repeat(workers, seconds, changes))
        for policy, values in choices.items():
            values.append(choices_us(workers, policy, 200 if policy == "least_loaded" else 2000))
    console.print(table(runs, choices))
    out.parent.mkdir(parents=True, exist_ok=True)
    report = {
        "command": " ".join(["python -m benchmarks.controller", *sys.argv[1:]]),
        "machine": machine(),
        "runs": [asdict(run) for run in runs],
        "choices_us": choices,
    }
    out.write_text(json.dumps(report, indent=1) + "\n")
    console.print(f"All runs: {out}")


if __name__ == "__main__":
    typer.run(main)
