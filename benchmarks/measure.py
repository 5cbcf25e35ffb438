"""Sends every cell to every system, in turn, repeat after repeat, and only to one at a time.

In each repeat all levels and all systems run, so that a slow minute of the machine hits them
alike; the order turns round from repeat to repeat.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import aiohttp

from benchmarks import processes
from benchmarks.arrivals import poisson_arrivals
from benchmarks.client import Endpoint, Limit, Load, stream_once, words
from benchmarks.loops import closed_loop, long_among_short, open_loop, open_session, run
from benchmarks.samples import Sample
from benchmarks.stats import Run, interference
from benchmarks.systems import Target
from benchmarks.workloads import Cell

RETRY_S = 30.0
"""How long a system is asked again after it was continued and answers with an error."""
ANSWER_S = 120.0
"""How long it may take for one trivial answer: its first one may compile something."""
WARM_UP_TOKENS = 8
LONG_PROMPT_WORDS = 500
QUIET_PIECES = 64
_LONG_TOKENS = 16
"""Of the long prompts' answers: of fewer none may have text, with random weights."""


class NotAnswering(RuntimeError):
    """A system does not answer even a trivial request; the message says why."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How the cells are measured.

    Attributes:
        open_s: how long requests arrive, in an open loop.
        seed: of prompts and arrivals.
        only_clients: system name without dots -> the only numbers of clients at which it is
            measured.
        limit: of a run in a closed loop.
    """

    cells: Sequence[Cell]
    repeats: int = 3
    requests_per_client: int = 2
    open_s: float = 30.0
    seed: int = 0
    pause: bool = True
    endpoint: Endpoint = "chat"
    temperature: float = 0.0
    api_key: str = ""
    only_clients: Mapping[str, frozenset[int]] = field(default_factory=dict)
    limit: Limit | None = None

    def takes(self, system: str, cell: Cell) -> bool:
        """Whether this system is measured in this cell."""
        levels = self.only_clients.get(system.replace(".", ""))
        return levels is None or cell.loop == "open" or cell.clients in levels

    def steps(self, systems: Sequence[str]) -> list[tuple[int, Cell, str]]:
        """(repeat, cell, system) in the order of measuring."""
        found: list[tuple[int, Cell, str]] = []
        for repeat in range(self.repeats):
            turned = repeat % 2 == 1
            for cell in reversed(self.cells) if turned else self.cells:
                order = reversed(systems) if turned else systems
                found += [(repeat, cell, name) for name in order if self.takes(name, cell)]
        return found


@dataclass(frozen=True, slots=True)
class Result:
    """One run of one cell on one system."""

    system: str
    cell: Cell
    repeat: int
    run: Run


@dataclass(slots=True)
class Measured:
    """All runs, and the systems that stopped answering (name -> reason)."""

    results: list[Result] = field(default_factory=list)
    lost: dict[str, str] = field(default_factory=dict)


Say = Callable[[int, int, str], object]
"""Told (steps done, steps in all, what happens or has happened now)."""


def measure(targets: Sequence[Target], plan: Plan, say: Say, measured: Measured) -> None:
    """Warm up and measure. A system that no longer answers is left out from then on.

    Args:
        measured: takes each result as it comes, so that an interrupt loses none.
    """
    by_name = {target.system: target for target in targets}
    all_roots = [pid for target in targets for pid in target.pids]
    steps = plan.steps(list(by_name))
    total = len(by_name) + len(steps)
    with processes.pausing() as pausing:

        def wake(target: Target) -> None:
            # the pids of a stack whose rows are several are the same: nothing is stopped then
            if plan.pause and pausing.run_only(target.pids, all_roots):
                run(_answers(target, plan))

        def lose(name: str, reason: str) -> None:
            measured.lost[name] = reason

        for done, target in enumerate(targets):
            say(done, total, f"warming up {target.system}")
            try:
                wake(target)
                run(_answers(target, plan))
                for load, clients in _warm_up(target, plan):
                    run(closed_loop(target.base_url, load, clients, 1, "warm-up", plan.api_key))
            except NotAnswering as failure:
                lose(target.system, str(failure))
        for done, (repeat, cell, name) in enumerate(steps, start=len(by_name)):
            if name in measured.lost:
                continue
            target = by_name[name]
            what = f"repeat {repeat + 1} of {plan.repeats}: {cell.workload.name}, {cell.label}"
            say(done, total, f"{what}: {name}")
            try:
                wake(target)
                result = Result(name, cell, repeat, run_cell(target, cell, repeat, plan))
            except NotAnswering as failure:
                lose(name, str(failure))
                continue
            measured.results.append(result)
            failed = f", {result.run.failed} failed" if result.run.failed else ""
            say(done + 1, total, f"{what}: {name}: {result.run.tokens_per_s:.1f} tokens/s{failed}")


def run_cell(target: Target, cell: Cell, repeat: int, plan: Plan) -> Run:
    """Send the load of a cell once, and fold what was seen."""
    before, own_before = processes.cpu_s(target.pids), _own_cpu_s()
    samples, details, clients = run(_send(target, cell, repeat, plan))
    return Run.of(
        clients,
        samples,
        cpu_s=processes.cpu_s(target.pids) - before if target.pids else None,
        client_cpu_s=_own_cpu_s() - own_before,
        details=details,
    )


async def _send(
    target: Target, cell: Cell, repeat: int, plan: Plan
) -> tuple[list[Sample], dict[str, float], int | None]:
    """(samples, details, number of clients) of one run."""
    # the name is in the seed: two systems may be two ways to one worker, whose cache of prefixes
    # would know the prompts of the first one
    seed = f"{plan.seed}/{cell.key}/{repeat}/{target.system}"
    load = load_of(target, cell, plan)
    url, key = target.base_url, plan.api_key
    if cell.loop == "open":
        due = poisson_arrivals(cell.rate_per_s, plan.open_s, f"{plan.seed}/{cell.key}/{repeat}")
        samples = await open_loop(url, load, due, seed, key)
        return samples, {"offered_per_s": len(due) / plan.open_s}, None
    if cell.loop == "long":
        workload = cell.workload
        seen = await long_among_short(
            url,
            load,
            replace(load, prompt_words=workload.long_words, tokens=_LONG_TOKENS),
            short_clients=cell.clients,
            long_requests=workload.long_requests,
            quiet_pieces=QUIET_PIECES,
            seed=seed,
            api_key=key,
        )
        failed_long = [sample for sample in seen.long if sample.error is not None]
        return seen.short + failed_long, interference(seen), cell.clients
    requests = plan.requests_per_client
    if cell.workload.kind == "prefix":
        requests = 1
        if cell.same_prefix:
            prefix = words(cell.workload.prefix_words, random.Random(f"{seed}/prefix"))
            load = replace(load, prefix=prefix)
            await closed_loop(url, load, 1, 1, f"{seed}/warm-up", key)
    samples = await closed_loop(url, load, cell.clients, requests, seed, key, limit=plan.limit)
    return samples, {}, cell.clients


def load_of(target: Target, cell: Cell, plan: Plan) -> Load:
    """What each request of the cell asks this system for."""
    workload = cell.workload
    own_prefix = 0 if cell.same_prefix else workload.prefix_words
    return Load(
        target.model,
        workload.tokens,
        workload.prompt_words + own_prefix,
        "native" if target.wire == "native" else plan.endpoint,
        plan.temperature,
        extra_body=target.extra_body,
    )


def _warm_up(target: Target, plan: Plan) -> Iterator[tuple[Load, int]]:
    """(load, clients) that touch every batch size and prompt length once, briefly."""
    done = set()
    for cell in plan.cells:
        if not plan.takes(target.system, cell):
            continue
        load = load_of(target, cell, plan)
        load = replace(load, tokens=min(WARM_UP_TOKENS, load.tokens))
        wanted = [(load, cell.clients or 4)]
        if cell.loop == "long":
            wanted.append((replace(load, prompt_words=cell.workload.long_words), 1))
        for one, clients in wanted:
            if one.prompt_words > LONG_PROMPT_WORDS:
                clients = 1  # a long prompt takes seconds, and more of them warm up nothing else
            if (one.prompt_words, clients) not in done:
                done.add((one.prompt_words, clients))
                yield one, clients


async def _answers(target: Target, plan: Plan) -> None:
    """Wait until the system is ready, in its own words where it has them, and has answered.

    Raises:
        NotAnswering: it does not in time.
    """
    load = Load(
        target.model,
        2,
        4,
        "native" if target.wire == "native" else plan.endpoint,
        plan.temperature,
        extra_body=target.extra_body,
    )
    deadline = time.monotonic() + RETRY_S
    rng = random.Random()
    reason = ""
    async with open_session(plan.api_key) as session:
        while time.monotonic() < deadline:
            try:
                async with session.get(f"{target.base_url}/readyz") as answer:
                    ready = answer.status != 503  # others do not know the route
                if ready:
                    sample = await asyncio.wait_for(
                        stream_once(session, target.base_url, load, rng), ANSWER_S
                    )
                    if sample.error is None:
                        return
                    reason = sample.error
                else:
                    reason = "it says that it is not ready"
            except (aiohttp.ClientError, TimeoutError) as failure:
                reason = f"{type(failure).__name__}: {failure}"
            await asyncio.sleep(0.2)
    raise NotAnswering(f"no answer within {RETRY_S:.0f} s: {reason}")


def _own_cpu_s() -> float:
    times = os.times()
    return times.user + times.system
