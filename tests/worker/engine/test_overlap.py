"""Overlapped steps give what steps one by one give, whatever ends, fails or is taken back."""

from __future__ import annotations

from typing import Any

import pytest

from tests.worker.engine.hash_runner import HashRunner, core, jobs, outputs_of
from worker.engine.protocol import Job, SequenceParams


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("num_blocks", [16, 60])
@pytest.mark.parametrize("late_each", [0, 5])
def test_overlapped_steps_give_the_same_tokens(seed: int, num_blocks: int, late_each: int) -> None:
    """With few blocks sequences are preempted while a step of theirs is under way."""
    work = jobs(seed)
    expected = outputs_of(core(HashRunner(), overlap=False, num_blocks=num_blocks), work)
    of = core(HashRunner(late_each), overlap=True, num_blocks=num_blocks)
    assert outputs_of(of, work) == expected
    assert of.load().kv_free == 1.0
    if num_blocks == 16:
        assert of.load().preemptions > 0


@pytest.mark.parametrize("seed", range(6))
def test_aborted_jobs_leave_the_others_as_they_are(seed: int) -> None:
    work = jobs(seed)
    expected = outputs_of(core(HashRunner(), overlap=False), work)
    of = core(HashRunner(), overlap=True, num_blocks=20)
    found = outputs_of(of, work, abort_seed=seed)
    assert of.load().kv_free == 1.0
    for key, tokens in found.items():
        assert tokens == expected[key][: len(tokens)]
    assert any(found[key] == expected[key] for key in found)


def test_a_bad_row_fails_its_job_alone_while_its_next_step_is_under_way() -> None:
    params = SequenceParams(max_tokens=12)
    work = [Job("good", [1, 2, 3], params), Job("bad", [9, 2, 3], params)]
    of = core(HashRunner(bad=9, bad_after=6), overlap=True)
    found = outputs_of(of, work)
    assert found["bad"] == ["bad_logits"]
    assert len(found["bad", 0]) == 3
    assert len(found["good", 0]) == 13
    assert of.load().kv_free == 1.0


def test_a_step_is_launched_before_the_one_before_is_read() -> None:
    runner = HashRunner()
    of = core(runner, overlap=True)
    outputs_of(of, [Job("a", [1, 2], SequenceParams(max_tokens=4))])
    assert runner.events == ["launch", *["launch", "read"] * 3, "read"]


@pytest.mark.parametrize(
    "params",
    [{"repetition_penalty": 1.2}, {"presence_penalty": 0.5}, {"frequency_penalty": 0.5}],
    ids=lambda params: next(iter(params)),
)
def test_a_step_is_read_first_where_the_next_needs_its_tokens(params: dict[str, Any]) -> None:
    runner = HashRunner()
    of = core(runner, overlap=True)
    outputs_of(of, [Job("a", [1, 2], SequenceParams(max_tokens=4, **params))])
    assert runner.events == ["launch", "read"] * 4


def test_no_step_goes_beyond_the_last_token() -> None:
    runner = HashRunner()
    outputs_of(core(runner, overlap=True), [Job("a", [1], SequenceParams(max_tokens=1))])
    assert runner.events == ["launch", "read"]
