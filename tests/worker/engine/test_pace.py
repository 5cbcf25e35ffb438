"""How much prefill a step bears beside decodes."""

from __future__ import annotations

import pytest

from worker.engine.rates import PrefillBudget, PrefillPace


def test_a_step_with_prefill_takes_less_than_twice_as_long_as_one_without() -> None:
    """A machine with 40 ms for decodes and 2 ms a prompt token."""
    pace = PrefillPace()
    pace.observe(500, 0, 1.0)
    for _ in range(20):
        pace.observe(0, 8, 0.040)
        budget = pace.budget(1, 8).long
        pace.observe(budget, 8, 0.040 + 0.002 * budget)
    assert pace.budget(1, 8).long == 18
    assert 0.040 + 0.002 * pace.budget(1, 8).long <= 2 * 0.040


@pytest.mark.parametrize("token_s", [0.0001, 0.001])
def test_the_budget_follows_the_cost_of_a_token(token_s: float) -> None:
    pace = PrefillPace(share=0.5, least=1)
    pace.observe(0, 4, 0.1)
    pace.observe(100, 4, 0.1 + 100 * token_s)
    assert pace.budget(1, 8).long == pytest.approx(0.5 * 0.1 / token_s, abs=1)


def test_before_anything_is_known_the_budget_is_small() -> None:
    pace = PrefillPace(least=16)
    assert pace.budget(1, 8).long == 64
    pace.observe(512, 0, 1.0)
    assert pace.budget(1, 8).long == 64


def test_prompts_come_forward_however_slow_they_are() -> None:
    pace = PrefillPace(least=16)
    pace.observe(0, 1, 0.001)
    pace.observe(64, 1, 10.0)
    assert pace.budget(1, 8).long == 16


def test_noise_that_makes_a_mixed_step_look_free_is_no_division_by_zero() -> None:
    pace = PrefillPace(least=16)
    pace.observe(0, 1, 1.0)
    pace.observe(64, 1, 0.5)
    assert pace.budget(1, 8).long == 64


def test_those_that_wait_count_as_much_as_those_that_decode() -> None:
    pace = PrefillPace(share=0.5, least=1)
    pace.observe(0, 4, 0.1)
    pace.observe(100, 4, 0.2)
    assert pace.budget(4, 4).long == 50
    assert pace.budget(12, 4).long == 150
    assert pace.budget(1, 4).long == 50


def test_short_prompts_may_take_longer_together() -> None:
    pace = PrefillPace(share=0.5, burst=4.0, least=1)
    pace.observe(0, 4, 0.1)
    pace.observe(100, 4, 0.2)
    assert pace.budget(1, 4) == PrefillBudget(tokens=400, long=50)
    assert pace.budget(8, 4) == PrefillBudget(tokens=800, long=100)


def test_steps_that_cost_no_more_than_decodes_do_not_drive_the_budget_up() -> None:
    """Tokens that a grammar forces count as prefill, and cost next to nothing."""
    pace = PrefillPace()
    pace.observe(0, 4, 0.1)
    pace.observe(100, 4, 0.2)
    known = pace.budget(1, 4)
    for _ in range(5000):
        pace.observe(3, 4, 0.09)
        assert pace.budget(1, 4) == known
    pace.observe(1, 1, 0.1 + 1e-12)
    for _ in range(200):
        pace.observe(10**6, 1, 0.1 + 1e-9)
    assert pace.budget(10, 1).tokens <= 8e6
