"""What follows from the times of matrix products."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.bound import Bound, share, time_products

REPORT = {
    "dtype": "bfloat16",
    "threads": 2,
    "parameters": 10,
    "torch": "2",
    "seconds": {
        "layers/1": [0.03, 0.02, 0.05],
        "layers/8": [0.04],
        "head/1": [0.002],
        "head/8": [0.003],
        "chunk/256": [0.5],
        "chunk/512": [0.8, 1.0],
    },
}


@pytest.fixture
def bound() -> Bound:
    return Bound.of(REPORT)


def test_the_bound_is_the_least_time(bound: Bound) -> None:
    assert bound.layers_s[1] == 0.02
    assert bound.median_layers_s[1] == 0.03
    assert bound.prefill_s_per_token == 0.8 / 512


def test_it_may_be_timed_more_than_once() -> None:
    bound = Bound.of(REPORT, {**REPORT, "seconds": {"layers/1": [0.01, 0.04]}})
    assert bound.layers_s[1] == 0.01
    assert bound.median_layers_s[1] == 0.03
    assert bound.layers_s[8] == 0.04


def test_a_step_is_all_layers_and_the_output_layer(bound: Bound) -> None:
    assert bound.step_s(8) == pytest.approx(0.043)
    assert bound.decode_tokens_per_s(8) == pytest.approx(8 / 0.043)


def test_numbers_of_clients_in_between_lie_on_the_line(bound: Bound) -> None:
    assert bound.step_s(4) == pytest.approx(bound.step_s(1) + 3 / 7 * 0.021)
    assert bound.step_s(16) == pytest.approx(2 * bound.step_s(8))


def test_a_request_is_its_prompt_its_first_token_and_the_steps_after_it(bound: Bound) -> None:
    seconds = 8 * 100 * 0.8 / 512 + 0.003 + 31 * 0.043
    assert bound.batch_s(8, 100, 32) == pytest.approx(seconds)
    assert bound.tokens_per_s(8, 100, 32) == pytest.approx(8 * 32 / seconds)
    assert bound.tokens_per_s(8, 0, 10_000) == pytest.approx(bound.decode_tokens_per_s(8), rel=1e-3)


def test_a_share_needs_a_bound() -> None:
    assert share(30, 60) == 0.5
    assert share(30, None) is None


def test_it_can_be_written(bound: Bound) -> None:
    written = json.loads(json.dumps(bound.as_json()))
    assert written["prefill_tokens_per_s"] == 640
    assert set(written["decode_tokens_per_s"]) == {"1", "8"}


@pytest.mark.slow
def test_the_products_of_a_model_are_timed(demo_model: Path) -> None:
    """The real thing: every matrix of the embedded model, once for each number of rows."""
    config = json.loads((demo_model / "config.json").read_text())
    bound = Bound.of(time_products(demo_model, [2], seconds=0))
    assert set(bound.layers_s) == set(bound.head_s) == {1, 2}
    assert bound.threads == 1  # a small model runs on one thread, in the engine too
    assert bound.parameters > config["vocab_size"] * config["hidden_size"]
    assert all(seconds > 0 for seconds in (*bound.layers_s.values(), *bound.chunk_s.values()))
