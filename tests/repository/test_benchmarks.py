"""The benchmark's arithmetic, and one short run of all of it with the simulated engine."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.client import Load, Sample
from benchmarks.stats import Run, Spread, percentile, summarise

ROOT = Path(__file__).resolve().parents[2]


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
    assert run.first_error == "cut"


def test_a_summary_has_the_median_and_the_spread_of_each_level() -> None:
    runs = [
        Run.of(1, [Sample(started_s=0, ended_s=seconds, pieces_s=[0.1], tokens=6)])
        for seconds in (1, 2, 3)
    ]
    assert summarise(runs)[1]["tokens_per_s"] == Spread(median=3, low=2, high=6)


def test_prompts_have_their_length_and_no_common_beginning() -> None:
    load = Load("m", tokens=4, prompt_words=48, endpoint="completions")
    rng = random.Random(0)
    prompts = [load.body(rng)["prompt"] for _ in range(8)]
    assert {len(prompt.split()) for prompt in prompts} == {48}
    assert len({tuple(prompt.split()[:4]) for prompt in prompts}) == 8


@pytest.mark.slow
def test_a_whole_run_counts_every_token(tmp_path: Path) -> None:
    out = tmp_path / "runs.json"
    flags = ["--engine=sim", "--clients=1,4", "--tokens=8", "--repeats=2", f"--out={out}"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.throughput", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    runs = json.loads(out.read_text())["runs"]
    assert [(run["clients"], run["requests"], run["tokens"]) for run in runs] == [
        *[(1, 2, 16), (4, 8, 64)],
        *[(4, 8, 64), (1, 2, 16)],
    ]
    assert not any(run["failed"] for run in runs)
