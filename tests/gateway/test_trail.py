"""What is kept of a request's way to a worker, and what it costs."""

from __future__ import annotations

import gc
from random import Random
from time import perf_counter

from gateway.candidates import Sieve
from gateway.routing import Group, Query, least_loaded, prefix_aware
from gateway.trail import KEPT_ATTEMPTS, NAMED_WORKERS, Attempt, Out, Trail, Trails
from protocol.fleet import Load
from protocol.route_report import AttemptReport, RouteReport
from tests.gateway.fakes import record

BUSY = record("busy", load=Load(waiting_tokens=500, running=2, prefill_tps=100.0))
IDLE = record("idle", load=Load(prefill_tps=200.0))


def report_of(attempt: Attempt) -> AttemptReport:
    return attempt.report()


def decided(*workers: object, **query: object):  # type: ignore[no-untyped-def]
    group = Group(workers or (BUSY, IDLE))  # type: ignore[arg-type]
    return least_loaded(Query(group, 100, **query), Random(1))  # type: ignore[arg-type]


def test_the_report_shows_every_part_of_the_score() -> None:
    decision = decided(unreported=lambda worker: 7 * (worker is IDLE), matched={"idle": 64})
    report = report_of(Trail("r").attempt("r:chatcmpl-1", 0, decision, ()))
    assert (report.worker, report.choices, report.prompt_tokens) == ("idle", 2, 100)
    assert (report.request_id, report.number) == ("r:chatcmpl-1.0", 1)
    busy, idle = report.candidates
    assert (busy.reported_tokens, busy.unreported_tokens, busy.speed) == (564, 0, 100.0)
    assert busy.cost == (500 + 2 * 32 + 100) / 100
    assert (idle.reported_tokens, idle.unreported_tokens, idle.matched_tokens) == (0, 7, 64)
    assert idle.cost == (7 + 100 - 64) / 200
    assert report.predicted_cached_tokens == 64


def test_the_worker_with_the_prefix_that_was_too_busy_is_named() -> None:
    group = Group([record("seen", load=Load(waiting_tokens=10**6)), record("a"), record("b")])
    decision = prefix_aware(Query(group, 2000, matched={"seen": 1984}), Random(3))
    report = report_of(Trail("r").attempt("r", 0, decision, ()))
    assert [(one.reason, one.workers) for one in report.left_out] == [
        ("knows the prefix, too busy", ("seen",))
    ]


def test_the_first_end_of_an_attempt_counts() -> None:
    attempt = Trail("r").attempt("r", 0, decided(), ())
    assert report_of(attempt).outcome == "running"
    attempt.answered()
    attempt.end("done", 48)
    attempt.end("cancelled")
    report = report_of(attempt)
    assert (report.outcome, report.cached_tokens) == ("done", 48)
    assert report.first_event_s is not None
    assert report.ended_s is not None
    assert 0 <= report.first_event_s <= report.ended_s


def test_a_sieve_says_why_workers_are_out_and_never_empties_by_accident() -> None:
    workers = [record(f"w{i}") for i in range(3)]
    sieve = Sieve(Group(workers), [Out("lacks chat", ["x"], 1)])
    sieve.drop("ejected", ["w0"])
    sieve.drop("set aside", ["w1", "w2"])
    assert [one.instance_id for one in sieve.group.workers] == ["w1", "w2"]
    sieve.drop("tried", ["w1", "w2"], or_none=True)
    assert sieve.group.workers == ()
    assert [(one.reason, one.instance_ids) for one in sieve.out] == [
        ("lacks chat", ["x"]),
        ("ejected", ["w0"]),
        ("tried", ["w1", "w2"]),
    ]


def test_a_list_of_many_workers_is_cut_and_counted() -> None:
    sieve = Sieve(Group([record(f"w{i:03}") for i in range(100)]))
    sieve.drop("ejected", [f"w{i:03}" for i in range(50)])
    [out] = sieve.out
    assert (len(out.instance_ids), out.number) == (NAMED_WORKERS, 50)


def test_the_last_requests_are_kept_and_the_later_one_of_an_id() -> None:
    trails = Trails(capacity=3)
    for number in range(5):
        Trail(f"r{number}", trails).attempt("a", 0, decided(), ())
    assert len(trails) == 3
    assert trails.report("r1") is None
    Trail("r4", trails).attempt("again", 0, decided(), ())
    found = trails.report("r4")
    assert found is not None
    assert RouteReport.model_validate_json(found).attempts[0].request_id == "again.0"
    assert len(trails) == 3


def test_a_request_that_reached_no_worker_is_not_kept() -> None:
    trails = Trails()
    Trail("r", trails)
    assert len(trails) == 0


def test_of_a_request_with_many_prompts_the_first_attempts_are_kept() -> None:
    trail = Trail("r", Trails())
    for number in range(KEPT_ATTEMPTS + 5):
        trail.attempt(f"r-{number}", number % 2, decided(), ())
    report = trail.report()
    assert (len(report.attempts), report.attempts_left_out) == (KEPT_ATTEMPTS, 5)
    assert trail.tries == 2


def test_a_trail_costs_a_request_microseconds() -> None:
    """The bound is wide, for a busy machine; docs/operations.md has the measured figure."""
    trails, decision, count = Trails(), decided(), 5000
    best = float("inf")
    gc.collect()
    for _ in range(5):
        begun = perf_counter()
        for number in range(count):
            attempt = Trail(str(number), trails).attempt("r", 0, decision, ())
            attempt.answered()
            attempt.end("done", 3)
        best = min(best, (perf_counter() - begun) / count)
    print(f"a trail: {best * 1e6:.2f} µs")
    assert best < 50e-6
