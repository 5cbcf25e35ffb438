"""The schedule of an open loop."""

from __future__ import annotations

import statistics

import pytest

from benchmarks.arrivals import most_at_once, poisson_arrivals


def test_the_same_seed_gives_the_same_times() -> None:
    assert poisson_arrivals(5, 10, "a") == poisson_arrivals(5, 10, "a")
    assert poisson_arrivals(5, 10, "a") != poisson_arrivals(5, 10, "b")


def test_arrivals_ascend_within_the_time() -> None:
    times = poisson_arrivals(50, 20, 0)
    assert times == sorted(times)
    assert times[0] > 0
    assert times[-1] < 20


def test_they_come_at_the_rate_and_without_memory() -> None:
    """Exponential gaps: their mean is 1 / rate, and so is their standard deviation."""
    times = poisson_arrivals(100, 200, 0)
    gaps = [b - a for a, b in zip([0, *times], times, strict=False)]
    assert len(times) == pytest.approx(20_000, rel=0.05)
    assert statistics.mean(gaps) == pytest.approx(0.01, rel=0.05)
    assert statistics.stdev(gaps) == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize("rate", [0, -1, float("nan")])
def test_a_rate_is_above_zero(rate: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        poisson_arrivals(rate, 1, 0)


def test_most_at_once_counts_overlaps() -> None:
    assert most_at_once([]) == 0
    assert most_at_once([(0, 2), (1, 3), (2, 4)]) == 2  # the first ends where the third begins
    assert most_at_once([(0, 9), (1, 2), (1, 3), (5, 6)]) == 3
