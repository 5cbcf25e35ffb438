"""Passive health: which workers to set aside after transport failures. Pure; time is passed in."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Final, Literal, TypeAlias

BreakerState: TypeAlias = Literal["closed", "open", "half_open"]

FAILURES_IN_A_ROW: Final = 3
WINDOW_S: Final = 10.0
WINDOW_CALLS: Final = 10
FIRST_OPEN_S: Final = 1.0
MAX_OPEN_S: Final = 60.0
SET_ASIDE_S: Final = 1.0


class Breaker:
    """One worker's. Opens after three failures in a row, or half of ten and more in 10 s.

    Open lasts 1 s and doubles to 60 s with every failed trial; then half-open admits one request.

    Args:
        troubled: told whether the last call that counted failed.
    """

    def __init__(self, troubled: Callable[[bool], None] = lambda _troubled: None) -> None:
        self._note = troubled
        self._in_a_row = 0
        self._recent: deque[tuple[float, bool]] = deque(maxlen=256)
        self._failed_at_s = float("-inf")
        self._open_s = 0.0
        self._trial = False

    def state(self, now_s: float) -> BreakerState:
        if not self._open_s:
            return "closed"
        return "open" if now_s < self._failed_at_s + self._open_s else "half_open"

    def admits(self, now_s: float) -> bool:
        """Whether a request may go there: always when closed, one at a time when half-open."""
        state = self.state(now_s)
        return state == "closed" or (state == "half_open" and not self._trial)

    def set_aside(self, now_s: float) -> bool:
        """Whether it failed a moment ago, so that others come first."""
        return self._in_a_row > 0 and now_s < self._failed_at_s + SET_ASIDE_S

    def begin(self, now_s: float) -> bool:
        """A request is sent there; returns whether it is the trial of one that is half-open."""
        if self._trial or self.state(now_s) != "half_open":
            return False
        self._trial = True
        return True

    def end(self, failed: bool | None, now_s: float, trial: bool = False) -> None:
        """The request is over.

        Args:
            failed: True for a transport failure, False for a success, None for neither (the
                client went away, or the request itself was at fault).
            trial: what `begin` returned.
        """
        if trial or failed is False:
            self._trial = False
        if failed is None:
            return
        self._recent.append((now_s, failed))
        self._note(failed)
        if not failed:
            self._in_a_row, self._open_s = 0, 0.0
            return
        self._in_a_row += 1
        self._failed_at_s = now_s
        if self._open_s:
            self._open_s = min(2 * self._open_s, MAX_OPEN_S) if trial else self._open_s
        elif self._in_a_row >= FAILURES_IN_A_ROW or self._half_failed(now_s):
            self._open_s = FIRST_OPEN_S

    def _half_failed(self, now_s: float) -> bool:
        calls = [failed for at_s, failed in self._recent if now_s - at_s <= WINDOW_S]
        return len(calls) >= WINDOW_CALLS and 2 * sum(calls) >= len(calls)


class Breakers:
    """Breakers by instance id; those of workers that left are dropped by `keep`."""

    def __init__(self) -> None:
        self._by_id: dict[str, Breaker] = {}
        self._troubled: set[str] = set()

    def __getitem__(self, instance_id: str) -> Breaker:
        found = self._by_id.get(instance_id)
        if found is None:
            found = self._by_id[instance_id] = Breaker(partial(self._note, instance_id))
        return found

    def keep(self, instance_ids: Iterable[str]) -> None:
        """Forget all but these."""
        kept = set(instance_ids)
        self._by_id = {id_: one for id_, one in self._by_id.items() if id_ in kept}
        self._troubled &= kept

    def states(self, now_s: float) -> Mapping[str, BreakerState]:
        return {id_: one.state(now_s) for id_, one in self._by_id.items()}

    def ejected(self, instance_ids: Collection[str], now_s: float) -> set[str]:
        """Those that get no request now: at most half, the ones that failed first come back."""
        if not self._troubled:
            return set()
        shut = [
            id_
            for id_ in self._troubled
            if id_ in instance_ids and not self._by_id[id_].admits(now_s)
        ]
        shut.sort(key=lambda id_: self._by_id[id_]._failed_at_s, reverse=True)
        return set(shut[: len(instance_ids) // 2])

    def set_aside(self, now_s: float) -> set[str]:
        """Those that failed a moment ago, so that others come first."""
        return {id_ for id_ in self._troubled if self._by_id[id_].set_aside(now_s)}

    def _note(self, instance_id: str, failed: bool) -> None:
        if failed and instance_id in self._by_id:
            self._troubled.add(instance_id)
        else:
            self._troubled.discard(instance_id)
