"""FastChat's two ways to choose a worker."""

from __future__ import annotations

import random
from collections import Counter
from typing import get_args

from controller.dispatch import CHOOSERS, Candidate, DispatchMethod, lottery, shortest_queue


def test_every_method_of_the_flag_has_a_function() -> None:
    assert set(get_args(DispatchMethod)) == set(CHOOSERS)


def test_nobody_is_chosen_of_nobody() -> None:
    assert all(choose([], random.Random(1)) is None for choose in CHOOSERS.values())


def test_the_shortest_queue_is_measured_by_speed() -> None:
    slow, fast = Candidate("slow", 1.0, 3), Candidate("fast", 4.0, 8)
    assert shortest_queue([slow, fast], random.Random(1)) is fast


def test_of_equal_queues_the_first_wins() -> None:
    first, second = Candidate("first", 1.0, 2), Candidate("second", 1.0, 2)
    assert shortest_queue([first, second], random.Random(1)) is first


def test_a_worker_without_speed_comes_last() -> None:
    stuck, busy = Candidate("stuck", 0.0, 0), Candidate("busy", 1.0, 99)
    assert shortest_queue([stuck, busy], random.Random(1)) is busy
    assert shortest_queue([stuck], random.Random(1)) is stuck


def test_the_lottery_is_weighted_by_speed() -> None:
    rng = random.Random(7)
    candidates = [Candidate("a", 1.0, 0), Candidate("b", 3.0, 50), Candidate("c", 0.0, 0)]
    drawn = Counter(chosen.instance_id for _ in range(4000) if (chosen := lottery(candidates, rng)))
    assert drawn["c"] == 0
    assert 2800 < drawn["b"] < 3200


def test_the_lottery_without_speed_has_no_winner() -> None:
    assert lottery([Candidate("a", 1e-5, 0)], random.Random(1)) is None
