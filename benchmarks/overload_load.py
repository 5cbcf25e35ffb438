"""The load of the overload sweep: capacity, an open loop beyond it, and the way back."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

from benchmarks.arrivals import poisson_arrivals
from benchmarks.client import words
from benchmarks.loops import open_session
from benchmarks.processes import cpu_s, tree
from benchmarks.stack import OwnStack
from benchmarks.stats import percentile

RAMP_S = 2.0
"""The first seconds of a level are offered and not counted: the queue fills."""
NORMAL_IN_A_ROW = 3


@dataclass(frozen=True, slots=True)
class Plan:
    """One worker, and what each request asks of it.

    Attributes:
        running, queue: sequences at once, and requests that may wait beside them.
        deadline_s: sent with each request; what comes later is no goodput.
    """

    tokens: int
    running: int
    queue: int
    deadline_s: float
    prompt_words: int = 32
    ttft_ms: float = 100.0
    itl_ms: float = 10.0

    def worker_args(self) -> list[str]:
        flags: Mapping[str, object] = {
            "--engine": "sim",
            "--sim-ttft-ms": self.ttft_ms,
            "--sim-itl-ms": self.itl_ms,
            "--sim-max-running": self.running,
            "--max-queue-requests": self.queue,
        }
        return [str(part) for pair in flags.items() for part in pair]

    def body(self, rng: random.Random) -> dict[str, Any]:
        return {
            "model": "sim",
            "messages": [{"role": "user", "content": words(self.prompt_words, rng)}],
            "max_tokens": self.tokens,
            "ignore_eos": True,
            "stream": True,
        }

    @property
    def alone_s(self) -> float:
        """How long an answer takes on an idle worker."""
        return (self.ttft_ms + self.itl_ms * (self.tokens - 1)) / 1000


@dataclass(frozen=True, slots=True)
class Seen:
    """One request. Times in seconds since it was due, but for `took_s`: since it was sent.

    Attributes:
        status: 0 when the connection ended without one, or in the middle of the answer.
        done: whether the whole answer came.
    """

    due_s: float
    status: int
    first_s: float
    whole_s: float
    took_s: float
    done: bool


@dataclass(frozen=True, slots=True)
class Level:
    """What came of one multiple of the capacity. Times in ms, NaN where there were none.

    Attributes:
        goodput_*: whole answers within their deadline, by when they ended.
        rejected: requests without an answer, by status; the times count from the sending.
        late: answers that the deadline ended in their middle.
        faults: other 5xx than 503 and 504.
        memory_mib: (before, most) by tier.
        cores: how many each tier and this program, `client`, kept busy.
        back_to_normal_s: seconds from the last arrival until answers are as on an idle worker.
    """

    factor: float
    offered_per_s: float
    goodput_tokens_per_s: float
    goodput_requests_per_s: float
    rejected: dict[str, int]
    rejected_p50_ms: float
    rejected_p99_ms: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    e2e_p50_ms: float
    e2e_p99_ms: float
    late: int
    faults: int
    resets: int
    memory_mib: dict[str, tuple[float, float]]
    cores: dict[str, float]
    back_to_normal_s: float

    @property
    def grown_mib(self) -> float:
        """The most that a tier grew while this was offered."""
        return max(peak - before for before, peak in self.memory_mib.values())


async def ask(
    http: aiohttp.ClientSession, gateway: str, plan: Plan, rng: random.Random, due_s: float
) -> Seen:
    """One streamed request, read to its end."""
    headers = {
        "Content-Type": "application/json",
        "x-request-timeout-ms": str(round(1000 * plan.deadline_s)),
    }
    body = orjson.dumps(plan.body(rng))
    status, first_s, tail = 0, 0.0, b""
    sent_s = time.perf_counter()
    try:
        async with http.post(
            f"{gateway}/v1/chat/completions", data=body, headers=headers
        ) as answer:
            status = answer.status
            async for piece in answer.content.iter_any():
                # the first piece says the role alone
                if not first_s and b'"content":"' in piece.replace(b'"content":""', b""):
                    first_s = time.perf_counter() - due_s
                tail = (tail + piece)[-4096:]
    except (aiohttp.ClientError, OSError):
        status = 0
    done = status == 200 and b"data: [DONE]" in tail
    if status == 200 and not done and b'"error"' not in tail:
        status = 0  # it broke off
    now_s = time.perf_counter()
    return Seen(due_s, status, first_s, now_s - due_s, now_s - sent_s, done)


async def capacity(gateway: str, plan: Plan, rng: random.Random, rounds: int = 8) -> float:
    """Requests a second of a closed loop that keeps the worker full, and a few waiting."""
    clients = plan.running + max(2, plan.running // 4)
    seeds = [random.Random(rng.random()) for _ in range(clients)]
    ended: list[float] = []
    async with open_session() as http:

        async def client(own: random.Random) -> None:
            for _ in range(rounds):
                seen = await ask(http, gateway, plan, own, time.perf_counter())
                if not seen.done:
                    raise RuntimeError(f"no answer below the capacity: HTTP {seen.status}")
                ended.append(time.perf_counter())

        await asyncio.gather(*map(client, seeds))
    # the first and the last round are not full
    middle = sorted(ended)[clients : len(ended) - clients]
    return (len(middle) - 1) / (middle[-1] - middle[0])


async def offer(
    stack: OwnStack, plan: Plan, factor: float, most_per_s: float, seconds: float
) -> Level:
    """That multiple of the capacity, at random moments, whatever becomes of it."""
    rate = factor * most_per_s
    arrivals = poisson_arrivals(rate, RAMP_S + seconds, f"overload/{factor}")
    memory = _Memory(stack)
    watching = asyncio.create_task(memory.watch())
    roots = {tier: [pid] for tier, pid in stack.pids.items()} | {"client": [os.getpid()]}
    busy = {tier: -cpu_s(pids) for tier, pids in roots.items()}
    async with open_session() as http:
        begun = time.perf_counter()
        sent = []
        for number, after in enumerate(arrivals):
            await asyncio.sleep(begun + after - time.perf_counter())
            rng = random.Random(f"overload/{factor}/{number}")
            due_s = begun + after
            sent.append(asyncio.create_task(ask(http, stack.gateway_url, plan, rng, due_s)))
        normal_s = await back_to_normal_s(stack.gateway_url, plan)
        seen = await asyncio.gather(*sent)
    watching.cancel()
    lasted_s = time.perf_counter() - begun
    cores = {tier: (busy[tier] + cpu_s(pids)) / lasted_s for tier, pids in roots.items()}
    cores["client"] -= sum(one for tier, one in cores.items() if tier != "client")  # its children
    opens, closes = begun + RAMP_S, begun + RAMP_S + seconds
    return level_of(factor, rate, seen, (opens, closes), plan, memory.found, cores, normal_s)


def level_of(
    factor: float,
    rate: float,
    seen: list[Seen],
    window: tuple[float, float],
    plan: Plan,
    memory: dict[str, tuple[float, float]],
    cores: dict[str, float],
    normal_s: float,
) -> Level:
    """What the requests of one level make together; those that were due before `window` opens, or
    ended outside of it, do not count as goodput. Pure.
    """
    opens, closes = window
    good = [one for one in seen if one.done and one.whole_s <= plan.deadline_s]
    counted = [one for one in good if opens <= one.due_s + one.whole_s < closes]
    refused = [one for one in seen if one.status not in (0, 200) and one.due_s >= opens]
    admitted = [one for one in good if one.due_s >= opens]
    per_s = len(counted) / (closes - opens)
    waits = [1000 * one.took_s for one in refused if one.status != 504]
    return Level(
        factor=factor,
        offered_per_s=rate,
        goodput_tokens_per_s=per_s * plan.tokens,
        goodput_requests_per_s=per_s,
        rejected=dict(sorted(Counter(str(one.status) for one in refused).items())),
        rejected_p50_ms=percentile(waits, 0.5),
        rejected_p99_ms=percentile(waits, 0.99),
        ttft_p50_ms=percentile([1000 * one.first_s for one in admitted], 0.5),
        ttft_p99_ms=percentile([1000 * one.first_s for one in admitted], 0.99),
        e2e_p50_ms=percentile([1000 * one.whole_s for one in admitted], 0.5),
        e2e_p99_ms=percentile([1000 * one.whole_s for one in admitted], 0.99),
        late=sum(one.status == 200 and one not in good for one in seen),
        faults=sum(one.status >= 500 and one.status not in (503, 504) for one in seen),
        resets=sum(one.status == 0 for one in seen),
        memory_mib=memory,
        cores=cores,
        back_to_normal_s=normal_s,
    )


async def back_to_normal_s(gateway: str, plan: Plan, patience_s: float = 60.0) -> float:
    """Seconds until a few answers in a row take hardly longer than on an idle worker."""
    begun = time.perf_counter()
    rng = random.Random(1)
    in_a_row = 0
    since_s = begun
    async with open_session() as http:
        while time.perf_counter() - begun < patience_s:
            sent_s = time.perf_counter()
            seen = await ask(http, gateway, plan, rng, sent_s)
            if seen.done and seen.whole_s < 1.5 * plan.alone_s:
                since_s = sent_s if in_a_row == 0 else since_s
                in_a_row += 1
                if in_a_row == NORMAL_IN_A_ROW:
                    return since_s - begun
            else:
                in_a_row = 0
                await asyncio.sleep(0.1)
    return patience_s


class _Memory:
    """Resident memory of gateway and worker: when it began, and the most since then."""

    def __init__(self, stack: OwnStack) -> None:
        self._roots = {tier: stack.pids[tier] for tier in ("gateway", "worker")}
        now = self._now()
        self.found = {tier: (mib, mib) for tier, mib in now.items()}

    async def watch(self, every_s: float = 0.5) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(every_s)
            for tier, mib in self._now().items():
                before, most = self.found[tier]
                self.found[tier] = before, max(most, mib)

    def _now(self) -> dict[str, float]:
        return {
            tier: sum(one.memory_info().rss for one in tree([root])) / 2**20
            for tier, root in self._roots.items()
        }
