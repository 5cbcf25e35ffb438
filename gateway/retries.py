"""What a request may do after a failure: go elsewhere, wait, or end. Pure: no I/O, no clock."""

from __future__ import annotations

import logging
from typing import Final

from gateway.metrics import GatewayMetrics
from gateway.progress import Progress
from gateway.routing import Group
from protocol.errors import TriremeError, quoted
from protocol.fleet import WorkerRecord

log = logging.getLogger(__name__)

MAX_RETRIES: Final = 2
MAX_DEATHS: Final = 2
RETRY_SHARE: Final = 0.2
RETRY_RESERVE: Final = 10.0
NO_WORKER_RETRY_S: Final = 1.0

_DEATHS: Final = frozenset("worker_lost engine_dead".split())
"""What a request may be the cause of: its worker, or the engine there, ended while it ran."""
_NOT_THERE: Final = frozenset("worker_unreachable wrong_instance engine_unavailable".split())
"""No work was done: nobody listens, or somebody else does, or there is no engine just now."""
_NO_ENGINE: Final = frozenset("engine_dead engine_unavailable".split())
_ADDS_LOAD: Final = frozenset("overloaded worker_timeout out_of_memory".split())
"""Failures whose retries make an overload worse; the others are the load of a lost worker."""


class RetryBudget:
    """Retries after an overload: a fifth of the requests, and a small reserve for quiet times."""

    def __init__(self) -> None:
        self._tokens = RETRY_RESERVE

    def earn(self) -> None:
        self._tokens = min(self._tokens + RETRY_SHARE, 10 * RETRY_RESERVE)

    def spend(self) -> bool:
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Retries:
    """What went wrong with one request so far, and whether it may go on.

    Attributes:
        tries: how many workers had it.
        last: the last failure. It is never raised itself: by its traceback it would hold the
            request, and this, in a cycle that only a collection finds.
        waits_until_s: monotonic; set by who waits for a worker, 0 before.
    """

    def __init__(
        self,
        budget: RetryBudget,
        metrics: GatewayMetrics,
        model: str,
        progress: Progress | None = None,
    ) -> None:
        self.tries = 0
        self.last: TriremeError | None = None
        self.waits_until_s = 0.0
        self._holder = ""  # who has it
        self._left: tuple[str, str] | None = None  # who had it, and the code of its failure
        self._is_counted = True
        self._failures = 0
        self._not_there = 0
        self._deaths = 0
        self._tried: dict[str, int] = {}
        self._wait_s: float | None = None
        self._budget = budget
        self._metrics = metrics
        self._model = model
        self._progress = progress
        budget.earn()

    @property
    def admitted(self) -> bool:
        """Whether a worker has taken it in: it has a place, which it keeps wherever it goes."""
        return self._progress is not None and self._progress.started

    @property
    def waits(self) -> bool:
        """Whether it may wait for an engine that is started again: it lost its own, or its place.

        One that nobody has taken in yet is told at once that there is no room.
        """
        return self.last is not None and (self.admitted or self.lost_engine)

    @property
    def lost_engine(self) -> bool:
        """Whether the last worker lives, without an engine."""
        return self.last is not None and self.last.code in _NO_ENGINE

    def tried(self, group: Group) -> list[str]:
        """Workers of the group that had the request; not those with a new engine since."""
        if not self._tried:
            return []
        found = group.by_id
        return [
            id_
            for id_, at in self._tried.items()
            if id_ in found and found[id_].engine_starts <= at
        ]

    def nobody(self) -> TriremeError:
        """What the client gets when no worker is left to ask."""
        if self.last is None or self.last.code == "wrong_instance":
            return no_worker(self._model)
        return again(self.last)

    def note(self, worker: WorkerRecord, error: TriremeError) -> None:
        """Return when the request may go to another worker, else raise what the client gets."""
        delivered = self._progress is not None and self._progress.delivered
        self._tried[worker.instance_id] = worker.engine_starts
        self.tries += 1
        if error.code in _NOT_THERE:
            self._not_there += 1
        elif error.code != "draining":
            self._failures += 1
        if error.code == "overloaded":
            # there is room again as soon as one of them has some
            waits = (self._wait_s, error.retry_after_s)
            self._wait_s = min((one for one in waits if one is not None), default=None)
            error.retry_after_s = self._wait_s
        self.last = again(error)
        if worker.short_id == self._holder:
            self._holder, self._left = "", (worker.short_id, error.code)
        if error.code != "draining":
            # not the message: it may repeat what the client sent
            log.info("worker %s failed a request: %s", worker.short_id, error.code)
        self._deaths += error.code in _DEATHS
        if not error.spec.retryable:
            raise again(error) from error
        if delivered and not self._resumable(worker):
            message = "The worker failed in the middle of the answer, and none can go on with it."
            raise TriremeError("worker_lost", message)
        if self._deaths >= MAX_DEATHS:
            message = "Two workers died while they served this request; it is not tried again."
            raise TriremeError("request_quarantined", message) from error
        # what was taken in goes on wherever it can, however many workers were not there before or
        # since; each is asked once
        not_there = 0 if self.admitted else self._not_there
        if max(self._failures, not_there) > MAX_RETRIES:
            raise again(error) from error
        # what was taken in is no new load: it goes on elsewhere in place of where it was
        if error.code in _ADDS_LOAD and not self.admitted and not self._budget.spend():
            raise again(error) from error
        self._is_counted = False

    def asks(self) -> None:
        """A worker is asked: in place of the one that failed, where there was one."""
        if self.last is not None and not self._is_counted:
            self._is_counted = True
            delivered = self._progress is not None and self._progress.delivered
            self._metrics.retried(self._model, self.last.code, resumed=delivered)

    def goes_on(self, worker: WorkerRecord) -> None:
        """The worker has taken the request in: tells where an answer that was begun goes on."""
        self._holder = worker.short_id
        if self._left is None or self._progress is None or not self._progress.delivered:
            return
        (before, code), tokens = self._left, self._progress.num_tokens
        if code == "draining":
            log.info(
                "worker %s drains; the answer was handed over to %s after %d tokens",
                before, worker.short_id, tokens,
            )  # fmt: skip
            return
        log.warning(
            "worker %s lost (%s); the answer went on at %s after %d tokens (attempt %d)",
            before, code, worker.short_id, tokens, self.tries + 1,
        )  # fmt: skip

    def _resumable(self, worker: WorkerRecord) -> bool:
        return worker.wire == "native" and self._progress is not None and self._progress.resumable


def no_worker(model: str) -> TriremeError:
    """For a model that is known, and that nobody serves now."""
    message = f"No worker serves the model `{quoted(model)}` right now."
    return TriremeError("no_worker", message, retry_after_s=NO_WORKER_RETRY_S)


def too_late(limit_s: float | None) -> TriremeError:
    return TriremeError("deadline_exceeded", f"The request was not finished within {limit_s:g} s.")


def again(error: TriremeError) -> TriremeError:
    """One of its own for each request that fails so: a raised exception grows by its traceback."""
    return TriremeError(
        error.code, error.message, param=error.param, retry_after_s=error.retry_after_s
    )
