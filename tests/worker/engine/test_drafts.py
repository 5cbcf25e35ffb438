"""An engine that drafts gives what one without gives, whatever ends, fails or is taken back."""

from __future__ import annotations

import random
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from tests.worker.engine.hash_runner import STOP, VOCAB, jobs, note, outputs_of
from worker.engine.blocks import BlockPool
from worker.engine.engine import EngineCore
from worker.engine.faults import OutOfMemory
from worker.engine.protocol import Job, RawLogprob, SequenceParams, StepOutput
from worker.engine.scheduler import Scheduled
from worker.engine.steps import RowResult, kept_of

BLOCK = 4


@dataclass
class StoringRunner:
    """Has a KV pool that stores tokens, and reads them back: a token depends on all before it as
    they are stored. Mostly a text goes on as six tokens before.

    Attributes:
        now: seconds; a step takes 8, and one for each token.
        fails: tokens of a step from which on it finds no memory.
        raises: the number of a step that cannot be computed.
    """

    fails: int = 1000
    raises: int = -1
    now: float = 0.0
    steps: int = 0
    stored: dict[tuple[int, int], int] = field(default_factory=dict)

    def run(self, batch: SequenceOf[Scheduled]) -> list[RowResult]:
        self.steps += 1
        num_tokens = sum(item.num_new for item in batch)
        if self.steps == self.raises:
            raise RuntimeError("this step is not computed")
        if num_tokens > self.fails:
            raise OutOfMemory
        self.now += 8 + num_tokens
        return [self._row(item) for item in batch]

    def _row(self, item: Scheduled) -> RowResult:
        tokens, table = item.token_ids(), item.seq.block_table
        assert len(tokens) == item.num_new
        for at, token in enumerate(tokens, item.start):
            self.stored[table[at // BLOCK], at % BLOCK] = token
        if not item.samples:
            return RowResult()
        end = item.start + item.num_new
        text = [self.stored[table[at // BLOCK], at % BLOCK] for at in range(end)]
        ends = range(end - len(item.draft), end + 1)
        return kept_of(item.draft, [self._next(text[:at], item) for at in ends])

    def _next(self, text: list[int], item: Scheduled) -> RowResult:
        rng = random.Random(str((text, item.seq.params.seed, item.seq.index)))
        token = rng.randrange(VOCAB) if rng.random() < 0.1 or len(text) < 6 else text[-6]
        wants = item.seq.params.logprobs is not None
        return RowResult(token, RawLogprob(token, -float(len(text))) if wants else None)

    def check(self) -> None:
        pass

    def clear(self, blocks: list[int]) -> None:
        for key in [key for key in self.stored if key[0] in blocks]:
            del self.stored[key]


def core(
    runner: StoringRunner, *, drafts: bool, num_blocks: int = 200, max_batch_tokens: int = 30
) -> EngineCore:
    return EngineCore(
        runner,
        BlockPool(num_blocks, BLOCK),
        max_running=6,
        max_batch_tokens=max_batch_tokens,
        drafts=drafts,
        clock=lambda: runner.now,
    )


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("num_blocks", [18, 200])
def test_drafts_change_no_token(seed: int, num_blocks: int) -> None:
    """With few blocks sequences are preempted meanwhile."""
    work = jobs(seed)
    plain, runner = StoringRunner(), StoringRunner()
    without = core(plain, drafts=False, num_blocks=num_blocks)
    expected = outputs_of(without, work)
    of = core(runner, drafts=True, num_blocks=num_blocks)
    assert outputs_of(of, work) == expected
    load = of.load()
    assert load.kv_free == 1.0
    assert load.generation_tokens == without.load().generation_tokens
    assert 0 < load.accepted_tokens < load.drafted_tokens
    assert (load.preemptions > 0) == (num_blocks == 18)
    assert runner.now < plain.now


@pytest.mark.parametrize("seed", range(6))
def test_aborted_jobs_leave_the_others_as_they_are(seed: int) -> None:
    work = jobs(seed)
    expected = outputs_of(core(StoringRunner(), drafts=False), work)
    of = core(StoringRunner(), drafts=True, num_blocks=20)
    found = outputs_of(of, work, abort_seed=seed)
    assert of.load().kv_free == 1.0
    assert any(found[key] == expected[key] for key in found)
    for key, tokens in found.items():
        assert tokens == expected[key][: len(tokens)]


@pytest.mark.parametrize("fault", [{"fails": 9}, {"raises": 30}])
def test_a_step_that_fails_is_computed_in_parts_with_its_drafts(fault: dict[str, int]) -> None:
    """One that found no memory is made smaller: drafts give way first."""
    work = jobs(1)
    expected = outputs_of(core(StoringRunner(), drafts=False), work)
    of = core(StoringRunner(**fault), drafts=True)
    assert outputs_of(of, work) == expected
    assert of.load().accepted_tokens > 0
    assert (of.load().out_of_memory > 0) == ("fails" in fault)


def test_a_stop_token_inside_a_draft_ends_the_text() -> None:
    class Counting(StoringRunner):
        def _next(self, text: list[int], item: Scheduled) -> RowResult:
            return RowResult(text[-5])

    prompt = [1, 2, 3, STOP, 5] * 3 + [1]
    params = SequenceParams(max_tokens=40, stop_token_ids=(STOP,))
    runner = Counting()
    of = core(runner, drafts=True)
    teach(of)
    steps = runner.steps
    found = outputs_of(of, [Job("a", prompt, params)])
    assert found["a", 0] == [2, 3, STOP, "stop"]
    assert runner.steps - steps == 2  # the prompt, and one with drafts
    assert of.load().kv_free == 1.0


def teach(of: EngineCore) -> None:
    """Let an engine learn what steps and tokens take."""
    outputs_of(of, [Job("first", list(range(20, 40)), SequenceParams(max_tokens=3))])


def test_what_drafts_are_worth_is_to_be_known_first() -> None:
    of = core(StoringRunner(), drafts=True)
    of.submit(Job("a", [1] * 9, SequenceParams(max_tokens=9)))
    of.step()
    of.step()
    assert of.load().drafted_tokens == 0
    of.step()
    assert of.load().drafted_tokens > 0


def test_each_token_of_a_draft_has_its_log_probability() -> None:
    params = SequenceParams(max_tokens=30, logprobs=0)
    told: list[tuple[int, RawLogprob]] = []
    of = core(StoringRunner(), drafts=True)
    teach(of)
    of.submit(Job("a", list(range(6)) * 3, params))
    longest = 0
    while of.has_work:
        for _job_id, output in of.step():
            assert isinstance(output, StepOutput)
            assert output.logprobs is not None
            longest = max(longest, len(output.ids))
            told += zip(output.ids, output.logprobs, strict=True)
    assert longest > 3
    assert [one.token_id for _id, one in told] == [id for id, _one in told]
    assert [one.logprob for _id, one in told] == [-float(18 + at) for at in range(30)]


def test_nothing_behind_a_row_that_is_not_finite_is_kept() -> None:
    rows = [RowResult(1), RowResult(2), RowResult(None, finite=False), RowResult(4)]
    assert kept_of([1, 2, 3], rows) == RowResult(1, more=(RowResult(2),))
    assert kept_of([1, 9, 3], rows) == RowResult(1, more=(RowResult(2),))
    assert kept_of([9, 2, 3], rows) == RowResult(1)


def test_blocks_written_by_drafts_are_found_by_others() -> None:
    """What was kept is in the prefix cache; what was wrong is not."""
    of = core(StoringRunner(), drafts=True)
    teach(of)
    prompt = list(range(6)) * 3
    first: dict[Any, Any] = {("a", 0): []}
    of.submit(Job("a", prompt, SequenceParams(max_tokens=60)))
    while of.has_work:
        for job_id, output in of.step():
            note(first, job_id, output)
    assert of.load().accepted_tokens > 20
    tokens = [*prompt, *first["a", 0][:60]]
    of.submit(Job("b", tokens, SequenceParams(max_tokens=1)))
    [(_job_id, output)] = of.step()
    assert isinstance(output, StepOutput)
    # the last block is not full or holds the last token, which was never computed
    assert output.cached_tokens == (len(tokens) - 1) // BLOCK * BLOCK
    again = core(StoringRunner(), drafts=False)
    expected = outputs_of(again, [Job("b", tokens, SequenceParams(max_tokens=1))])
    assert output.ids == expected["b", 0][:1]


class Repeating(StoringRunner):
    """Jobs repeat six tokens, but for one that never repeats anything."""

    def _next(self, text: list[int], item: Scheduled) -> RowResult:
        return RowResult(1000 + len(text) if item.seq.job_id == "quiet" else text[-6])


def quiet_token_s(*, drafts: bool, num_repeating: int) -> float:
    """Seconds between two tokens of a text that does not repeat itself beside some that do."""
    runner = Repeating()
    of = core(runner, drafts=drafts, num_blocks=4000, max_batch_tokens=2048)
    outputs_of(of, [Job("first", list(range(20, 400)), SequenceParams(max_tokens=40))])
    of.submit(Job("quiet", list(range(500, 506)), SequenceParams(max_tokens=150)))
    for number in range(num_repeating):
        prompt = [10 * number + at % 6 for at in range(24)]
        of.submit(Job(str(number), prompt, SequenceParams(max_tokens=3000)))
    started_s, num = runner.now, 0
    while num < 150:
        found = [output for job_id, output in of.step() if job_id == "quiet"]
        num += sum(len(output.ids) for output in found if isinstance(output, StepOutput))
    return (runner.now - started_s) / num


@pytest.mark.parametrize("num_repeating", [1, 4])
def test_drafts_do_not_slow_those_that_have_none(num_repeating: int) -> None:
    """Steps take 8 and one for each token."""
    without = quiet_token_s(drafts=False, num_repeating=num_repeating)
    assert quiet_token_s(drafts=True, num_repeating=num_repeating) <= 1.5 * without


@pytest.mark.parametrize("length", [8, 12, 16, 40])
def test_a_short_prompt_does_not_end_the_measure_of_drafts(length: int) -> None:
    """Drafted steps of 17 tokens say nothing about what a token takes beside prompts of fewer."""
    of = core(Repeating(), drafts=True, num_blocks=1000, max_batch_tokens=64)
    of.submit(Job("a", [at % 6 for at in range(length)], SequenceParams(max_tokens=1500)))
    while of.has_work:
        of.step()
    assert of.load().step < 120  # 1500 / 17, and a few to learn


def test_what_is_behind_the_end_of_a_text_is_not_counted_as_accepted() -> None:
    """A draft beyond a stop token may be right, but nobody gets it."""

    class Counting(StoringRunner):
        def _next(self, text: list[int], item: Scheduled) -> RowResult:
            self.now += 100  # so that long drafts pay
            return RowResult(text[-5])

    of = core(Counting(), drafts=True)
    teach(of)
    before = of.load()
    params = SequenceParams(max_tokens=40, stop_token_ids=(7,))
    found = outputs_of(of, [Job("a", [1, 2, 3, 7, 5] * 3 + [1], params)])
    load = of.load()
    assert found["a", 0] == [2, 3, 7, "stop"]
    assert load.drafted_tokens - before.drafted_tokens > 2
    assert load.accepted_tokens - before.accepted_tokens <= 2


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tenants", ["a", "ab"])
def test_choices_that_begin_with_tokens_are_drafted_too(seed: int, tenants: str) -> None:
    work = [
        replace(job, begun=[[1, 2, 3] * number for number in range(job.n)], tenant=tenant)
        for number, job in enumerate(jobs(seed))
        for tenant in tenants[number % len(tenants)]
        if job.params.max_tokens > 6
    ]

    def told(of: EngineCore) -> dict[tuple[str, int], list[int]]:
        found: dict[tuple[str, int], list[int]] = {}
        for job in work:
            of.submit(job)
        while of.has_work:
            for job_id, output in of.step():
                assert isinstance(output, StepOutput)
                found.setdefault((job_id, output.index), []).extend(output.ids)
        return found

    assert told(core(StoringRunner(), drafts=True)) == told(core(StoringRunner(), drafts=False))


def test_log_probabilities_end_with_the_text() -> None:
    """A draft may be right beyond a stop token."""

    class Counting(StoringRunner):
        def _next(self, text: list[int], item: Scheduled) -> RowResult:
            self.now += 100  # so that long drafts pay
            return RowResult(text[-5], RawLogprob(text[-5], -1.0))

    of = core(Counting(), drafts=True)
    teach(of)
    params = SequenceParams(max_tokens=40, stop_token_ids=(7,), logprobs=0)
    of.submit(Job("a", [1, 2, 3, 7, 5] * 3 + [1], params))
    told = []
    while of.has_work:
        told += [output for _job_id, output in of.step()]
    assert of.load().drafted_tokens > 2
    for output in told:
        assert isinstance(output, StepOutput)
        assert [one.token_id for one in output.logprobs or ()] == output.ids
