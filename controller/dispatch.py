"""Chooses one worker among candidates, as FastChat's two methods do. Pure: no clock, no I/O."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

DispatchMethod: TypeAlias = Literal["lottery", "shortest_queue"]
"""The names of `--dispatch-method`; `CHOOSERS` has one function for each."""

MIN_TOTAL_SPEED: Final = 1e-4
"""Below this sum of speeds the lottery has no winner, as in FastChat."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A worker that could be chosen.

    Attributes:
        instance_id: who it is.
        speed: relative, 1 for a plain worker; 0 means that it takes nothing while others can.
        queue: requests it holds: the number of its last heartbeat plus those sent since.
    """

    instance_id: str
    speed: float
    queue: int


Chooser = Callable[[Sequence[Candidate], random.Random], Candidate | None]


def lottery(candidates: Sequence[Candidate], rng: random.Random) -> Candidate | None:
    """A random candidate, weighted by speed; None when there is none or none has speed."""
    if math.fsum(candidate.speed for candidate in candidates) < MIN_TOTAL_SPEED:
        return None
    return rng.choices(candidates, weights=[candidate.speed for candidate in candidates])[0]


def shortest_queue(candidates: Sequence[Candidate], _rng: random.Random) -> Candidate | None:
    """The candidate with the least queue/speed; of equals the first. None when there is none."""
    return min(
        candidates,
        key=lambda each: each.queue / each.speed if each.speed > 0 else math.inf,
        default=None,
    )


CHOOSERS: Final[Mapping[DispatchMethod, Chooser]] = {
    "lottery": lottery,
    "shortest_queue": shortest_queue,
}
