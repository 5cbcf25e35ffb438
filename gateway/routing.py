"""Chooses workers for a request. Pure: no I/O, no clock; randomness and load are passed in.

The cost of a worker is the work that stands before a new prompt there, in tokens, over its speed:
what its last heartbeat reported and what this gateway sent it since. `prefix_aware` takes the
better of two random workers (Mitzenmacher's power of two choices) and the worker that saw the
longest prefix of the prompt, whose cost is less by what it need not prefill again; that worker is
left out of it when it is loaded well above the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from types import MappingProxyType
from typing import Final, TypeAlias

from protocol.fleet import WorkerRecord

RUNNING_TOKENS: Final = 32
"""What a running sequence is worth: it slows prefill and decode of a newcomer down."""
QUEUED_TOKENS: Final = 256
"""What a request in a FastChat worker's queue is worth; it reports no tokens."""
BOUND_FACTOR: Final = 2.0
BOUND_SLACK_TOKENS: Final = 4096.0


@dataclass(frozen=True, slots=True)
class Query:
    """What a policy knows.

    Attributes:
        workers: the candidates, at least one.
        prompt_tokens: about how many the prompt has.
        unreported: tokens that this gateway sent an instance since its last heartbeat.
        matched: tokens of the prompt's prefix that an instance was sent before.
    """

    workers: Sequence[WorkerRecord]
    prompt_tokens: int = 1
    unreported: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    matched: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    def backlog(self, worker: WorkerRecord) -> float:
        """Tokens of work before a new request there."""
        load = worker.load
        reported = load.waiting_tokens + RUNNING_TOKENS * load.running
        if worker.wire == "fastchat":
            reported = QUEUED_TOKENS * worker.queue_length
        return float(reported + self.unreported.get(worker.instance_id, 0))

    def speed(self, worker: WorkerRecord) -> float:
        """Prefill tokens a second when all candidates have measured it, else the named speed."""
        if all(other.load.prefill_tps > 0 for other in self.workers):
            return worker.load.prefill_tps
        return worker.speed or 1.0

    def cost(self, worker: WorkerRecord) -> float:
        """Time until the prompt is through, in no particular unit."""
        todo = max(0, self.prompt_tokens - self.matched.get(worker.instance_id, 0))
        return (self.backlog(worker) + todo) / self.speed(worker)


Policy: TypeAlias = Callable[[Query, Random], list[WorkerRecord]]
"""Orders all candidates, the best first."""


def prefix_aware(query: Query, rng: Random) -> list[WorkerRecord]:
    workers = query.workers
    first = list(workers) if len(workers) <= 2 else rng.sample(list(workers), 2)
    matching = [w for w in workers if query.matched.get(w.instance_id)]
    if matching:
        seen = max(matching, key=lambda w: (query.matched[w.instance_id], -query.cost(w)))
        mean = sum(query.backlog(w) / query.speed(w) for w in workers) / len(workers)
        bound = BOUND_FACTOR * mean + BOUND_SLACK_TOKENS / query.speed(seen)
        if seen not in first and query.backlog(seen) / query.speed(seen) <= bound:
            first.append(seen)
    return _by_cost(query, rng, first) + _by_cost(
        query, rng, [worker for worker in workers if worker not in first]
    )


def least_loaded(query: Query, rng: Random) -> list[WorkerRecord]:
    return _by_cost(query, rng, query.workers)


def random_order(query: Query, rng: Random) -> list[WorkerRecord]:
    return rng.sample(list(query.workers), len(query.workers))


def _by_cost(query: Query, rng: Random, workers: Sequence[WorkerRecord]) -> list[WorkerRecord]:
    return sorted(workers, key=lambda worker: (query.cost(worker), rng.random()))


POLICIES: Final[Mapping[str, Policy]] = MappingProxyType(
    {"prefix_aware": prefix_aware, "least_loaded": least_loaded, "random": random_order}
)


@dataclass(frozen=True, slots=True)
class Ticket:
    """One request that this gateway has on a worker."""

    instance_id: str
    seq: int
    tokens: int


class InFlight:
    """Own requests by instance, told apart by whether a heartbeat can have reported them."""

    def __init__(self) -> None:
        self._open: dict[str, dict[int, Ticket]] = {}

    def begin(self, worker: WorkerRecord, tokens: int) -> Ticket:
        """A request of so many tokens goes to the worker; give the ticket back to `end`."""
        ticket = Ticket(worker.instance_id, worker.seq, tokens)
        self._open.setdefault(worker.instance_id, {})[id(ticket)] = ticket
        return ticket

    def end(self, ticket: Ticket) -> None:
        of_worker = self._open[ticket.instance_id]
        del of_worker[id(ticket)]
        if not of_worker:
            del self._open[ticket.instance_id]

    def count(self, instance_id: str | None = None) -> int:
        """Requests on one instance, or on all."""
        if instance_id is not None:
            return len(self._open.get(instance_id, ()))
        return sum(map(len, self._open.values()))

    def unreported(self, workers: Sequence[WorkerRecord]) -> dict[str, int]:
        """Tokens sent to each since its heartbeat of the snapshot."""
        return {
            worker.instance_id: sum(
                ticket.tokens
                for ticket in self._open.get(worker.instance_id, {}).values()
                if ticket.seq >= worker.seq
            )
            for worker in workers
        }
