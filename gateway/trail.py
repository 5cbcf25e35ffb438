"""What became of a client's request: every attempt at a worker, and why it was that one. Pure.

On a request's way only references are kept; the report is made when somebody asks for it. Knows
neither prompts nor answers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from time import perf_counter, time
from typing import Final, NamedTuple

from gateway.routing import Candidate, Decision
from protocol.route_report import AttemptReport, CandidateReport, LeftOut, RouteReport

KEPT_REQUESTS: Final = 1000
KEPT_ATTEMPTS: Final = 16
"""Of one request: one with many prompts has many."""
NAMED_WORKERS: Final = 16


class Out(NamedTuple):
    """Workers that could not be chosen.

    Attributes:
        instance_ids: all of them, or the first `NAMED_WORKERS`.
        number: how many they are.
    """

    reason: str
    instance_ids: Sequence[str]
    number: int


class Attempt:
    """One try at a worker."""

    __slots__ = (
        "_begun_s",
        "_cached_tokens",
        "_decision",
        "_ended_s",
        "_first_s",
        "_number",
        "_out",
        "_outcome",
        "_unix_s",
        "_wire_id",
    )

    def __init__(self, wire_id: str, number: int, decision: Decision, out: Sequence[Out]) -> None:
        self._wire_id = wire_id
        self._number = number
        self._decision = decision
        self._out = out
        self._unix_s = time()
        self._begun_s = perf_counter()
        self._first_s: float | None = None
        self._ended_s: float | None = None
        self._outcome = "running"
        self._cached_tokens: int | None = None

    def answered(self) -> None:
        """The worker has given its first event."""
        if self._first_s is None:
            self._first_s = perf_counter()

    def end(self, outcome: str, cached_tokens: int | None = None) -> None:
        """The attempt is over; the first call counts.

        Args:
            outcome: `done`, `cancelled`, or an error's code.
            cached_tokens: tokens of the prompt that the worker did not need to compute.
        """
        if self._ended_s is None:
            self._ended_s, self._outcome = perf_counter(), outcome
            self._cached_tokens = cached_tokens

    def report(self) -> AttemptReport:
        decision = self._decision
        out = [
            LeftOut(reason=one.reason, workers=one.instance_ids, count=one.number)
            for one in self._out
        ]
        if decision.too_busy is not None:
            ids = (decision.too_busy.instance_id,)
            out.append(LeftOut(reason="knows the prefix, too busy", workers=ids, count=1))
        return AttemptReport(
            request_id=f"{self._wire_id}.{self._number}",
            number=self._number + 1,
            time=self._unix_s,
            worker=decision.chosen.worker.instance_id,
            address=decision.chosen.worker.address,
            prompt_tokens=decision.prompt_tokens,
            choices=decision.choices,
            candidates=[_candidate(one) for one in decision.looked_at],
            left_out=out,
            outcome=self._outcome,
            first_event_s=self._since(self._first_s),
            ended_s=self._since(self._ended_s),
            predicted_cached_tokens=min(decision.chosen.matched, decision.prompt_tokens),
            cached_tokens=self._cached_tokens,
        )

    def _since(self, at_s: float | None) -> float | None:
        return None if at_s is None else round(at_s - self._begun_s, 6)


class Trail:
    """Of one request of a client, which may be several at workers.

    Attributes:
        tries: of that one of them that was tried most often.
        last: the worker that was tried last.
    """

    __slots__ = ("_attempts", "_kept", "last", "left_out", "request_id", "tries")

    def __init__(self, request_id: str = "", kept: Trails | None = None) -> None:
        self.request_id = request_id
        self.tries = 0
        self.last = ""
        self._kept = kept
        self._attempts: list[Attempt] = []
        self.left_out = 0

    def attempt(self, wire_id: str, number: int, decision: Decision, out: Sequence[Out]) -> Attempt:
        """A worker is tried.

        Args:
            wire_id: the request's id at the worker, without the number.
            number: of tries before.
        """
        if not self.tries and self._kept is not None:
            self._kept.keep(self)
        self.tries = max(self.tries, number + 1)
        self.last = decision.chosen.worker.short_id
        made = Attempt(wire_id, number, decision, out)
        if len(self._attempts) < KEPT_ATTEMPTS:
            self._attempts.append(made)
        else:
            self.left_out += 1
        return made

    def report(self) -> RouteReport:
        return RouteReport(
            request_id=self.request_id,
            attempts=[one.report() for one in self._attempts],
            attempts_left_out=self.left_out,
        )


class Trails:
    """The last requests that were sent to a worker, by request id; a later one of an id wins."""

    def __init__(self, capacity: int = KEPT_REQUESTS) -> None:
        self._capacity = capacity
        self._by_id: OrderedDict[str, Trail] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_id)

    def keep(self, trail: Trail) -> None:
        self._by_id.pop(trail.request_id, None)
        self._by_id[trail.request_id] = trail
        if len(self._by_id) > self._capacity:
            self._by_id.popitem(last=False)

    def report(self, request_id: str) -> str | None:
        """The `RouteReport` as JSON; None for a request that is not kept."""
        found = self._by_id.get(request_id)
        return found.report().model_dump_json() if found is not None else None


def _candidate(one: Candidate) -> CandidateReport:
    return CandidateReport(
        worker=one.worker.instance_id,
        reported_tokens=one.reported,
        unreported_tokens=one.unreported,
        speed=one.speed,
        matched_tokens=one.matched,
        cost=one.cost,
    )
