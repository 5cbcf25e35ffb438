"""The benchmark's arithmetic: percentiles, runs, spreads, what long prompts do to short streams."""

from __future__ import annotations

import json
import math

import pytest

from benchmarks.samples import Interference, Sample
from benchmarks.stats import Run, Spread, interference, percentile, short, summarise


def test_a_percentile_is_a_value_that_was_measured() -> None:
    values = [float(number) for number in range(1, 101)]
    assert [percentile(values, share) for share in (0.01, 0.5, 0.99, 1)] == [1, 50, 99, 100]
    assert percentile([7.0], 0.99) == 7.0
    assert math.isnan(percentile([], 0.5))


def test_a_failed_request_counts_as_failed_and_in_nothing_else() -> None:
    good = Sample(started_s=0, ended_s=2, pieces_s=[0.5, 1.0, 1.25], tokens=3)
    bad = Sample(started_s=0, ended_s=4, pieces_s=[3.0], tokens=1, error="cut")
    run = Run.of(2, [good, bad])
    assert (run.requests, run.failed, run.tokens) == (2, 1, 3)
    assert run.tokens_per_s == 3 / 4
    assert (run.ttft_p50_ms, run.itl_p50_ms, run.itl_p99_ms) == (500, 250, 500)
    assert run.requests_per_s == 1 / 4
    assert run.first_error == "cut"


def test_the_time_per_token_does_not_depend_on_the_pieces() -> None:
    """A server that sends two tokens in each piece is not twice as fast for it."""
    one_by_one = Sample(0, 3, pieces_s=[1.0, 1.5, 2.0, 2.5, 3.0], tokens=5)
    in_pairs = Sample(0, 3, pieces_s=[1.0, 2.0, 3.0], tokens=5)
    assert one_by_one.tpot_s == in_pairs.tpot_s == 0.5
    assert Sample(0, 1, pieces_s=[0.5], tokens=1).tpot_s is None


def test_an_open_loop_counts_from_when_a_request_was_due() -> None:
    late = Sample(started_s=1.0, sent_s=1.25, ended_s=3.0, pieces_s=[2.0], tokens=1)
    run = Run.of(None, [late, Sample(started_s=2.0, sent_s=2.0, ended_s=2.5, pieces_s=[2.5])])
    assert run.ttft_p99_ms == 1000
    assert run.e2e_p99_ms == 2000
    assert run.late_p99_ms == 250
    assert run.clients == 2  # under way at once


def test_cpu_time_is_told_for_a_thousand_tokens() -> None:
    sample = Sample(0, 1, pieces_s=[0.5], tokens=500)
    assert Run.of(1, [sample], cpu_s=0.25).cpu_ms_per_1000_tokens == 500
    assert Run.of(1, [sample]).cpu_ms_per_1000_tokens is None


def test_prompt_tokens_are_known_when_every_answer_told_them() -> None:
    told = Sample(0, 1, pieces_s=[0.5], tokens=1, prompt_tokens=50)
    silent = Sample(0, 1, pieces_s=[0.5], tokens=1, usage_known=False)
    assert Run.of(2, [told, told]).prompt_tokens_each == 50
    assert Run.of(2, [told, silent]).prompt_tokens_each is None
    assert not Run.of(2, [told, silent]).usage_known


def test_a_run_without_any_good_request_can_be_written() -> None:
    runs = [Run.of(1, [Sample(0, 1, error="no")]), Run.of(None, [])]
    for run in runs:
        written = json.loads(json.dumps(run.as_json(), allow_nan=False))
        assert written["ttft_p50_ms"] is None
        assert written["tokens"] == 0


def test_a_summary_has_the_median_and_the_spread_of_each_level() -> None:
    runs = [
        Run.of(1, [Sample(started_s=0, ended_s=seconds, pieces_s=[0.1], tokens=6)])
        for seconds in (1, 2, 3)
    ]
    assert summarise(runs)[1]["tokens_per_s"] == Spread(median=3, low=2, high=6)


def test_a_spread_leaves_out_what_was_not_measured() -> None:
    assert Spread.of([math.nan, 1.0, 3.0]) == Spread(2, 1, 3)
    assert Spread.of([math.nan]).line() == "–"
    assert Spread.of([10.0, 20.0, 600.0]).line() == "20.0 (10.0–600)"


@pytest.mark.parametrize(("value", "text"), [(0.123, "0.12"), (12.34, "12.3"), (1234.5, "1234")])
def test_figures_have_three_digits(value: float, text: str) -> None:
    assert short(value) == text


def test_gaps_are_told_apart_by_when_the_long_prompts_ran() -> None:
    stream = Sample(0, 10, pieces_s=[0.5, 1.0, 1.1, 1.3, 2.3, 2.8, 9.0], tokens=7)
    other = Sample(0, 10, pieces_s=[1.0, 1.2], tokens=2)
    long = [Sample(2.0, 4, pieces_s=[3.0]), Sample(2.0, 4, error="too long")]
    seen = Interference([stream, other], long, quiet_from_s=1.0, long_from_s=2.0, long_to_s=3.0)
    found = interference(seen)
    # quiet: 0.1, 0.2, 0.2; disturbed: the one that the long prompts' arrival cut, and 0.5
    assert (found["quiet_gaps"], found["disturbed_gaps"]) == (3, 2)
    assert found["quiet_itl_p99_ms"] == pytest.approx(200)
    assert found["disturbed_itl_p50_ms"] == pytest.approx(500)
    assert found["disturbed_itl_p99_ms"] == pytest.approx(1000)
    assert found["itl_p99_ratio"] == pytest.approx(5)
    assert found["long_ttft_max_ms"] == pytest.approx(1000)
