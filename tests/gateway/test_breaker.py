"""Passive health with a virtual clock."""

from __future__ import annotations

from random import Random

import pytest

from gateway import dispatch
from gateway.breaker import Breaker, Breakers
from gateway.routing import Group, InFlight, Query, least_loaded
from gateway.trail import Trail
from tests.gateway.fakes import record


def fail(breaker: Breaker, now_s: float) -> None:
    breaker.end(True, now_s, breaker.begin(now_s))


def test_three_failures_in_a_row_open_it() -> None:
    breaker = Breaker()
    fail(breaker, 0)
    fail(breaker, 0)
    breaker.end(False, 0)
    fail(breaker, 0)
    fail(breaker, 0)
    assert breaker.state(0) == "closed"
    fail(breaker, 0)
    assert breaker.state(0) == "open"
    assert not breaker.admits(0.5)


def test_half_open_admits_one_request_and_a_success_closes() -> None:
    breaker = Breaker()
    for _ in range(3):
        fail(breaker, 0)
    assert breaker.state(1.0) == "half_open"
    assert breaker.admits(1.0)
    breaker.begin(1.0)
    assert not breaker.admits(1.0)
    breaker.end(False, 1.1)
    assert breaker.state(1.1) == "closed"


def test_each_failed_trial_doubles_the_pause_up_to_a_minute() -> None:
    breaker, now_s, pauses = Breaker(), 0.0, []
    for _ in range(3):
        fail(breaker, now_s)
    for _ in range(8):
        pause_s = next(s for s in range(1, 100) if breaker.state(now_s + s) == "half_open")
        pauses.append(pause_s)
        now_s += pause_s
        fail(breaker, now_s)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]


def test_a_client_that_cancels_does_not_count_but_frees_the_trial() -> None:
    breaker = Breaker()
    for _ in range(3):
        fail(breaker, 0)
    trial = breaker.begin(1)
    breaker.end(None, 1, trial)
    assert breaker.admits(1)
    assert breaker.state(1) == "half_open"


def test_a_request_from_before_does_not_free_the_trial() -> None:
    breaker = Breaker()
    earlier = breaker.begin(0)
    for _ in range(3):
        fail(breaker, 0)
    trial = breaker.begin(1)
    assert (earlier, trial) == (False, True)
    breaker.end(None, 1, earlier)
    assert not breaker.admits(1), "the trial is still under way"
    breaker.end(True, 1, trial)
    assert breaker.state(2.9) == "open", "the pause has doubled"


def test_a_trial_that_was_answered_does_not_free_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its answer may be read for a long time yet."""
    now_s = 0.0
    monkeypatch.setattr(dispatch, "monotonic", lambda: now_s)
    breaker, worker = Breaker(), record("w1", "http://w1")
    attempt = Trail().attempt("r", 1, least_loaded(Query(Group([worker])), Random(0)), ())
    for _ in range(3):
        fail(breaker, 0)
    now_s = 1.0
    with dispatch._Loan(InFlight(), breaker, worker, 1, attempt) as answered:
        answered.answers()
        for _ in range(3):
            fail(breaker, 1)
        now_s = 2.0
        assert breaker.begin(2), "the next trial"
    assert not breaker.admits(2), "it is still under way"


def test_half_of_ten_calls_in_ten_seconds_open_it() -> None:
    breaker = Breaker()
    for call in range(10):
        breaker.begin(call / 10)
        breaker.end(call % 2 == 1, call / 10)
    assert breaker.state(1) == "open"


def test_old_failures_are_forgotten() -> None:
    breaker = Breaker()
    for call in range(9):
        breaker.end(call % 2 == 0, call / 10)
    breaker.end(False, 20)
    breaker.end(True, 21)
    assert breaker.state(21) == "closed"


def test_one_failure_sets_aside_for_a_moment() -> None:
    breaker = Breaker()
    fail(breaker, 5)
    assert breaker.set_aside(5.5)
    assert not breaker.set_aside(6.5)


def test_at_most_half_of_the_workers_are_ejected_the_latest_to_fail_first() -> None:
    breakers = Breakers()
    for number, name in enumerate("abc"):
        for _ in range(3):
            fail(breakers[name], number / 10)
    assert breakers.ejected("abcd", 0.5) == {"b", "c"}
    assert breakers.ejected("abc", 0.5) == {"c"}
    assert breakers.ejected("a", 0.5) == set()


def test_breakers_of_workers_that_left_are_dropped() -> None:
    breakers = Breakers()
    fail(breakers["a"], 0)
    fail(breakers["b"], 0)
    breakers.keep(["b"])
    assert set(breakers.states(0)) == {"b"}
