"""Chooses a worker for a request. Pure: no I/O, no clock; randomness and load are passed in.

The cost of a worker is the work that stands before a new prompt there, in tokens, over its speed:
what its last heartbeat reported and what this gateway sent it since. While no controller tells
of heartbeats, what this gateway has there itself stands for the report. `prefix_aware` takes the
better of two random workers (Mitzenmacher's power of two choices) and the worker that saw the
longest prefix of the prompt, whose cost is less by what it need not prefill again; that worker is
left out of it when it is loaded well above the others. So it looks at a few workers, however many
there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from random import Random
from types import MappingProxyType
from typing import Final, NamedTuple, TypeAlias

from protocol.fleet import WorkerRecord

RUNNING_TOKENS: Final = 32
"""What a running sequence is worth: it slows prefill and decode of a newcomer down."""
QUEUED_TOKENS: Final = 256
"""What a request in a FastChat worker's queue is worth; it reports no tokens."""
BOUND_FACTOR: Final = 2.0
BOUND_SLACK_TOKENS: Final = 4096.0
KEPT_CANDIDATES: Final = 16
SAMPLED_WORKERS: Final = 16
"""So many random ones stand for all when their mean load is asked for."""


class Group:
    """The workers that can serve a kind of request, as one snapshot of the fleet has them.

    Attributes:
        by_id: them, by instance id.
        measured: whether all have measured their prefill rate, so that it can be compared.
        all_native: whether all speak this stack's own wire.
    """

    def __init__(self, workers: Sequence[WorkerRecord]) -> None:
        self.workers = tuple(workers)
        self.by_id = {worker.instance_id: worker for worker in workers}
        self.measured = all(worker.load.prefill_tps > 0 for worker in workers)
        self.all_native = all(worker.wire == "native" for worker in workers)


def reported_tokens(worker: WorkerRecord) -> int:
    """Tokens of work there, by its last heartbeat."""
    if worker.wire == "fastchat":
        return QUEUED_TOKENS * worker.queue_length
    return worker.load.waiting_tokens + RUNNING_TOKENS * worker.load.running


class Query(NamedTuple):
    """What a policy knows.

    Attributes:
        group: the candidates, at least one.
        prompt_tokens: about how many the prompt has.
        unreported: tokens that this gateway sent a worker since its last heartbeat.
        matched: tokens of the prompt's prefix that an instance was sent before.
        reported: tokens of work at a worker before that.
    """

    group: Group
    prompt_tokens: int = 1
    unreported: Callable[[WorkerRecord], int] = lambda _worker: 0
    matched: Mapping[str, int] = MappingProxyType({})
    reported: Callable[[WorkerRecord], int] = reported_tokens

    def backlog(self, worker: WorkerRecord) -> float:
        """Tokens of work before a new request there."""
        return float(self.reported(worker) + self.unreported(worker))

    def speed(self, worker: WorkerRecord) -> float:
        """Prefill tokens a second when all candidates have measured it, else the named speed."""
        return worker.load.prefill_tps if self.group.measured else worker.speed or 1.0

    def weighed(self, worker: WorkerRecord) -> Candidate:
        """The worker with its cost: the time until the prompt is through, in no certain unit."""
        matched = self.matched.get(worker.instance_id, 0)
        reported, unreported = self.reported(worker), self.unreported(worker)
        speed, todo = self.speed(worker), max(0, self.prompt_tokens - matched)
        cost = (reported + unreported + todo) / speed
        return Candidate(worker, reported, unreported, matched, speed, cost)


class Candidate(NamedTuple):
    """A worker that a policy looked at, and what it saw.

    Attributes:
        reported, unreported, matched: tokens, as `Query` has them.
        speed: tokens a second, or what FastChat calls speed.
    """

    worker: WorkerRecord
    reported: int
    unreported: int
    matched: int
    speed: float
    cost: float


class Decision(NamedTuple):
    """A worker, and why it was chosen.

    Attributes:
        looked_at: the workers that were compared, at most `KEPT_CANDIDATES` of them.
        choices: among how many workers the policy could choose.
        too_busy: the worker that knew the prompt's prefix best, when it was left out because of
            its load.
    """

    chosen: Candidate
    looked_at: Sequence[Candidate]
    choices: int
    prompt_tokens: int
    too_busy: WorkerRecord | None = None


Policy: TypeAlias = Callable[[Query, Random], Decision]


def prefix_aware(query: Query, rng: Random) -> Decision:
    """The cheapest of two random workers and the one that knows the prompt's prefix best."""
    choices = _some(query.group, 2, rng)
    too_busy = None
    found = query.group.by_id
    matching = [found[id_] for id_, tokens in query.matched.items() if tokens and id_ in found]
    if matching:
        seen = max(matching, key=lambda w: (query.matched[w.instance_id], -query.weighed(w).cost))
        others = _some(query.group, SAMPLED_WORKERS, rng)
        mean = sum(query.backlog(w) / query.speed(w) for w in others) / len(others)
        bound = BOUND_FACTOR * mean + BOUND_SLACK_TOKENS / query.speed(seen)
        if query.backlog(seen) / query.speed(seen) <= bound:
            choices.append(seen)
        else:
            too_busy = seen
    return _cheapest(query, rng, choices, too_busy)


def least_loaded(query: Query, rng: Random) -> Decision:
    """The cheapest of all: it looks at every one."""
    return _cheapest(query, rng, query.group.workers)


def random_worker(query: Query, rng: Random) -> Decision:
    """Any."""
    return _cheapest(query, rng, [rng.choice(query.group.workers)])


def _some(group: Group, count: int, rng: Random) -> list[WorkerRecord]:
    workers = group.workers
    return list(workers) if len(workers) <= count else rng.sample(workers, count)


def _cheapest(
    query: Query,
    rng: Random,
    workers: Sequence[WorkerRecord],
    too_busy: WorkerRecord | None = None,
) -> Decision:
    """Of equal ones a random one."""
    weighed = [query.weighed(worker) for worker in workers]
    chosen = weighed[0]
    if len(weighed) > 1:
        chosen = min(weighed, key=lambda one: (one.cost, rng.random()))
        if len(weighed) > KEPT_CANDIDATES:
            weighed = nsmallest(KEPT_CANDIDATES, weighed, key=lambda one: one.cost)
    return Decision(chosen, weighed, len(query.group.workers), query.prompt_tokens, too_busy)


POLICIES: Final[Mapping[str, Policy]] = MappingProxyType(
    {"prefix_aware": prefix_aware, "least_loaded": least_loaded, "random": random_worker}
)


class Ticket(NamedTuple):
    """One request that this gateway has on a worker."""

    instance_id: str
    seq: int
    tokens: int


@dataclass(slots=True)
class _Sent:
    """What one instance has of this gateway: requests, and tokens since the heartbeat `seq`."""

    requests: int = 0
    seq: int = -1
    tokens: int = 0


class InFlight:
    """Own requests by instance, told apart by whether a heartbeat can have reported them."""

    def __init__(self) -> None:
        self._sent: dict[str, _Sent] = {}

    def begin(self, worker: WorkerRecord, tokens: int) -> Ticket:
        """A request of so many tokens goes to the worker; give the ticket back to `end`."""
        sent = self._sent.get(worker.instance_id)
        if sent is None:
            sent = self._sent[worker.instance_id] = _Sent()
        sent.requests += 1
        if worker.seq > sent.seq:
            sent.seq, sent.tokens = worker.seq, 0
        sent.tokens += tokens
        return Ticket(worker.instance_id, sent.seq, tokens)

    def end(self, ticket: Ticket) -> None:
        sent = self._sent[ticket.instance_id]
        sent.requests -= 1
        if ticket.seq == sent.seq:
            sent.tokens -= ticket.tokens
        if not sent.requests:
            del self._sent[ticket.instance_id]

    def count(self, instance_id: str | None = None) -> int:
        """Requests on one instance, or on all."""
        if instance_id is None:
            return sum(sent.requests for sent in self._sent.values())
        sent = self._sent.get(instance_id)
        return sent.requests if sent is not None else 0

    def own_tokens(self, worker: WorkerRecord) -> int:
        """What the requests of this gateway there are worth: all that is known of its load while
        nobody tells of heartbeats."""
        return RUNNING_TOKENS * self.count(worker.instance_id)

    def unreported(self, worker: WorkerRecord) -> int:
        """Tokens sent to it since its heartbeat of the snapshot."""
        sent = self._sent.get(worker.instance_id)
        return sent.tokens if sent is not None and sent.seq >= worker.seq else 0
