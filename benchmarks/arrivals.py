"""When the requests of an open loop are due. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterable


def poisson_arrivals(rate_per_s: float, seconds: float, seed: int | str) -> list[float]:
    """Times in [0, seconds), ascending, of requests that know nothing of each other.

    The gaps are exponential with the mean 1 / `rate_per_s`; the same seed gives the same times.

    Raises:
        ValueError: for a rate that is not positive.
    """
    if not rate_per_s > 0:
        raise ValueError(f"a rate must be above 0, not {rate_per_s}")
    rng = random.Random(seed)
    times: list[float] = []
    now = rng.expovariate(rate_per_s)
    while now < seconds:
        times.append(now)
        now += rng.expovariate(rate_per_s)
    return times


def most_at_once(spans: Iterable[tuple[float, float]]) -> int:
    """The greatest number of (start, end) spans that overlap at some moment."""
    # an end at the same moment as a start comes before it: they do not overlap
    edges = sorted((time, step) for start, end in spans for time, step in ((start, 1), (end, -1)))
    running = most = 0
    for _time, step in edges:
        running += step
        most = max(most, running)
    return most
