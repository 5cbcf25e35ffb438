"""Compares the requests that this gateway has on a worker with those that the worker counts. Pure.

What a worker reported is older than the gateway's own count, and its answers are on their way, so
the two need not be equal. But a request that was open here from `WINDOW_S` seconds before the
report came until a second after it must be in it, and one that was open at no time of these must
not be. What lies outside of these bounds is drift: a request that the worker never gave back (above
0), or one that it does not know of (below 0). A report grows old when its worker cannot reach a
controller, or this process was frozen; so drift is shown when `LOOKS` looks in a row, one a second,
agree: for longer than a lease, after which such a worker is no measure any more.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from itertools import takewhile
from time import monotonic
from typing import Final

from protocol.fleet import WorkerRecord

log = logging.getLogger(__name__)

WINDOW_S: Final = 3.0
"""Longer than the time between two heartbeats, and the way of one over a controller to here."""
LOOK_EVERY_S: Final = 1.0
LOOKS: Final = 10


class OpenRequests:
    """Those on one worker: when they began, and of those that ended a moment ago when they did.

    Every call passes a time that is not earlier than that of the call before.
    """

    def __init__(self) -> None:
        self._numbers = 0
        self._begun_s: dict[int, float] = {}  # the oldest first
        self._ended_s: deque[float] = deque()

    def begin(self, now_s: float) -> int:
        """A request goes there; returns what `end` wants."""
        self._numbers += 1
        self._begun_s[self._numbers] = now_s
        return self._numbers

    def end(self, number: int, now_s: float) -> None:
        del self._begun_s[number]
        self._ended_s.append(now_s)
        self._forget(now_s - WINDOW_S - LOOK_EVERY_S)

    def drift(self, reported: int, came_s: float) -> int:
        """By how many a worker's count is above, or below, all that it can have been.

        Args:
            came_s: when the count was known here; better a second ago than now, because what ends
                then was perhaps over at the worker before it counted.
        """
        since_s = came_s - WINDOW_S
        self._forget(since_s)
        throughout = sum(1 for _ in takewhile(lambda at_s: at_s < since_s, self._begun_s.values()))
        sometime = len(self._begun_s) + len(self._ended_s)
        return max(0, reported - sometime) + min(0, reported - throughout)

    @property
    def any(self) -> bool:
        return bool(self._begun_s)

    def _forget(self, since_s: float) -> None:
        while self._ended_s and self._ended_s[0] < since_s:
            self._ended_s.popleft()


class _Watched:
    """One worker: what is open there, and by how much the last looks found it off."""

    def __init__(self) -> None:
        self.open = OpenRequests()
        self.report: tuple[int, float] | None = None
        self.off: deque[int] = deque(maxlen=LOOKS)
        self.told = 0

    def look(self, reported: int, now_s: float) -> None:
        """Judge what was reported by the look before."""
        if self.report is not None:
            self.off.append(self.open.drift(*self.report))
        self.report = reported, now_s

    def forget(self) -> None:
        """What was reported is worth nothing any more."""
        self.report = None
        self.off.clear()

    @property
    def drift(self) -> int:
        """The least that all of the last looks say."""
        if len(self.off) < LOOKS:
            return 0
        return max(0, min(self.off)) + min(0, max(self.off))


class _Open:
    """A request is open inside `with`."""

    __slots__ = ("_clock", "_number", "_requests")

    def __init__(self, requests: OpenRequests, clock: Callable[[], float]) -> None:
        self._requests, self._clock = requests, clock

    def __enter__(self) -> None:
        self._number = self._requests.begin(self._clock())

    def __exit__(self, *_: object) -> None:
        self._requests.end(self._number, self._clock())


class DriftWatch:
    """Of all workers that count; one that left the fleet is forgotten when nothing is open there.

    Args:
        gateway_id: by which workers know the requests of this process.
        clock: seconds, monotonic.
    """

    def __init__(self, gateway_id: str, clock: Callable[[], float] = monotonic) -> None:
        self.gateway_id = gateway_id
        self._clock = clock
        self._by_id: dict[str, _Watched] = {}

    def request(self, worker: WorkerRecord) -> _Open:
        """For a `with` around a request that tells the worker the `gateway_id`."""
        watched = self._by_id.get(worker.instance_id)
        if watched is None:
            watched = self._by_id[worker.instance_id] = _Watched()
        return _Open(watched.open, self._clock)

    def look(self, workers: Iterable[WorkerRecord]) -> None:
        """Compare with what these workers reported last: those that controllers hear from."""
        now_s = self._clock()
        counting = {worker.instance_id: worker for worker in workers if worker.serving is not None}
        for instance_id in self._by_id.keys() - counting.keys():
            self._by_id[instance_id].forget()
            if not self._by_id[instance_id].open.any:
                del self._by_id[instance_id]
        for instance_id, worker in counting.items():
            watched = self._by_id.setdefault(instance_id, _Watched())
            watched.look((worker.serving or {}).get(self.gateway_id, 0), now_s)
            _tell(worker, watched)

    def drifts(self) -> Mapping[str, int]:
        """By instance id."""
        return {id_: one.drift for id_, one in self._by_id.items() if one.off}


def _tell(worker: WorkerRecord, watched: _Watched) -> None:
    drift = watched.drift
    if drift == watched.told:
        return
    watched.told = drift
    if drift:
        more = "more" if drift > 0 else "fewer"
        message = "worker %s counts %d requests %s of this gateway than there are"
        log.warning(message, worker.short_id, abs(drift), more)
    else:
        log.info("worker %s counts the requests of this gateway right again", worker.short_id)
