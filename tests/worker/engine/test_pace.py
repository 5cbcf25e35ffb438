"""How much prefill a step bears beside decodes."""

from __future__ import annotations

import pytest

from worker.engine.rates import PrefillBudget, PrefillPace

STEP_S, TOKEN_S = 0.020, 0.002
"""A machine: what a step takes, and what each of its tokens adds."""


def _steps(
    pace: PrefillPace, num: int, prefill: int, decodes: int, token_s: float = TOKEN_S
) -> None:
    for _ in range(num):
        pace.observe(prefill, decodes, STEP_S + token_s * (prefill + decodes))


def _known(pace: PrefillPace, token_s: float = TOKEN_S) -> PrefillPace:
    """`pace` once it knows the machine."""
    for _ in range(20):
        _steps(pace, 1, 400, 8, token_s)
        _steps(pace, 31, 0, 8, token_s)
    return pace


def test_a_step_with_prefill_takes_less_than_twice_as_long_as_one_without() -> None:
    pace = PrefillPace(least=8)
    _steps(pace, 1, 500, 0)
    for _ in range(20):
        _steps(pace, 10, 0, 8)
        _steps(pace, 10, pace.budget(1, 8).long, 8)
    alone_s = STEP_S + 8 * TOKEN_S
    assert pace.budget(1, 8).long == pytest.approx(0.8 * alone_s / TOKEN_S, abs=1)
    assert alone_s + TOKEN_S * pace.budget(1, 8).long < 2 * alone_s


@pytest.mark.parametrize("token_s", [0.0001, 0.001])
def test_the_budget_follows_the_cost_of_a_token(token_s: float) -> None:
    pace = _known(PrefillPace(share=0.5, least=1), token_s)
    assert pace.budget(1, 8).long == pytest.approx(0.5 * (STEP_S + 8 * token_s) / token_s, abs=1)


def test_the_budget_follows_the_number_of_decodes() -> None:
    """Also where every step has prefill, so that none shows how long the decodes of now take."""
    pace = PrefillPace(share=0.5, least=1)
    _steps(pace, 1, 500, 0)
    _steps(pace, 31, 0, 1)
    _steps(pace, 200, 8, 18)
    assert pace.budget(1, 18).long == pytest.approx(0.5 * (STEP_S / TOKEN_S + 18), abs=1)


def test_a_machine_that_never_had_a_step_without_prefill_goes_on_as_it_began() -> None:
    """Nothing tells what a step takes and what its tokens add: a short prompt alone, a long one
    beside it."""
    pace = PrefillPace(least=8)
    _steps(pace, 1, 10, 0)
    _steps(pace, 200, pace.budget(1, 1).long, 1)
    assert pace.budget(1, 1).long == 32
    assert pace.budget(5, 1).long == 32 * 64
    _steps(pace, 1, 0, 1)
    assert pace.budget(1, 1).long == int(0.8 * (STEP_S / TOKEN_S + 1))


def test_a_step_that_other_work_made_long_changes_nothing() -> None:
    pace = _known(PrefillPace(least=8))
    known = pace.budget(1, 8)
    pace.observe(known.long, 8, 1.0)
    pace.observe(0, 8, 1.0)
    assert pace.budget(1, 8) == known


def test_it_reaches_no_further_than_twice_what_was_measured() -> None:
    """A machine on which the first 64 tokens of a step cost next to nothing."""
    pace = PrefillPace(least=8)
    _steps(pace, 31, 0, 8)
    pace.observe(8, 8, STEP_S + 8 * TOKEN_S + 1e-6)
    assert pace.budget(1, 8).long == int(0.8 * 2 * 16)
    pace.observe(24, 8, STEP_S + 8 * TOKEN_S + 1e-6)
    assert pace.budget(1, 8).long == int(0.8 * 2 * 32)


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


def test_many_that_wait_make_haste() -> None:
    pace = _known(PrefillPace(share=0.5, least=1))
    alone = pace.budget(1, 8).long
    assert pace.budget(5, 8).long == pace.budget(0, 8).long == alone
    assert pace.budget(9, 8).long == pytest.approx(4 * alone, abs=4)
    assert pace.budget(17, 8).long == pytest.approx(16 * alone, abs=16)


def test_one_that_waits_alone_makes_no_haste() -> None:
    pace = _known(PrefillPace(share=0.5, least=1))
    assert pace.budget(1, 1).long == pytest.approx(0.5 * (STEP_S / TOKEN_S + 1), abs=1)


def test_short_prompts_may_take_longer_together() -> None:
    pace = _known(PrefillPace(share=0.5, burst=4.0, least=1))
    budget = pace.budget(1, 8)
    assert budget.tokens == pytest.approx(8 * budget.long, abs=8)


def test_steps_that_cost_no_more_than_decodes_do_not_drive_the_budget_up() -> None:
    """Tokens that a grammar forces count as prefill, and cost next to nothing."""
    pace = PrefillPace()
    pace.observe(0, 4, 0.1)
    pace.observe(100, 4, 0.2)
    known = pace.budget(1, 4)
    for _ in range(5000):
        pace.observe(3, 4, 0.09)
        assert pace.budget(1, 4) == known
    pace.observe(10**6, 1, 0.1 + 1e-9)
    assert pace.budget(10, 1) == PrefillBudget(tokens=10**6, long=10**6)


@pytest.mark.parametrize("drafted", [0, 5])
def test_what_a_step_takes_is_told_in_tokens(drafted: int) -> None:
    """Also from steps with drafts, which have more tokens than sequences."""
    pace = PrefillPace()
    _steps(pace, 3, 0, 8)
    assert pace.step_tokens is None
    _steps(pace, 3, 100, 8)
    _steps(pace, 31, 0, 8 + drafted)
    assert pace.step_tokens == pytest.approx(STEP_S / TOKEN_S)
    free = PrefillPace()
    free.observe(0, 8, 8 * TOKEN_S / 2)
    free.observe(100, 8, 108 * TOKEN_S)
    assert free.step_tokens == 0
