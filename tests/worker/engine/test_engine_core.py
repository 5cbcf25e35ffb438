"""The engine's core over a scripted model: outputs, aborts, deadlines, one bad row."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

from worker.engine.blocks import BlockPool
from worker.engine.engine import EngineCore, JobFailed, Output
from worker.engine.protocol import Job, SequenceParams, StepOutput
from worker.engine.scheduler import Scheduled
from worker.engine.steps import RowResult


class CountingRunner:
    """Gives each sequence the tokens 100, 101, ...; rows of `bad` prompts are not finite."""

    def __init__(self, bad: int = -1) -> None:
        self.bad = bad
        self.cleared: list[int] = []

    def run(self, batch: SequenceOf[Scheduled]) -> list[RowResult]:
        return [
            RowResult(finite=False)
            if item.samples and item.seq.token_ids[0] == self.bad
            else RowResult(100 + item.seq.num_output if item.samples else None)
            for item in batch
        ]

    def clear(self, blocks: list[int]) -> None:
        self.cleared += blocks


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def core(runner: CountingRunner | None = None, clock: Clock | None = None) -> EngineCore:
    return EngineCore(
        runner or CountingRunner(),
        BlockPool(32, 4),
        max_running=8,
        max_batch_tokens=64,
        clock=clock or Clock(),
    )


def job(
    job_id: str, first: int = 1, n: int = 1, max_tokens: int = 3, deadline_s: float | None = None
) -> Job:
    params = SequenceParams(max_tokens=max_tokens, stop_token_ids=(101,) if first == 9 else ())
    return Job(job_id, [first, 2, 3, 4, 5], params, n=n, deadline_s=deadline_s)


def drain(of: EngineCore) -> list[tuple[str, Output]]:
    outputs: list[tuple[str, Output]] = []
    while of.has_work:
        outputs += of.step()
    return outputs


def test_outputs_carry_positions_and_end_once() -> None:
    of = core()
    of.submit(job("a", n=2))
    outputs = [output for _job, output in drain(of) if isinstance(output, StepOutput)]
    for index in (0, 1):
        own = [output for output in outputs if output.index == index]
        assert [(output.pos, output.ids, output.finish) for output in own] == [
            (0, [100], None),
            (1, [101], None),
            (2, [102], "length"),
        ]
    assert of.load().generation_tokens == 6
    assert of.load().kv_free == 1.0


def test_a_stop_token_ends_a_sequence_and_is_named() -> None:
    of = core()
    of.submit(job("a", first=9))
    last = drain(of)[-1][1]
    assert last == StepOutput(0, 1, [101], finish="stop", stop_token=101)


def test_an_aborted_choice_gives_its_blocks_back_and_the_other_goes_on() -> None:
    of = core()
    of.submit(job("a", n=2, max_tokens=50))
    of.step()
    of.step()
    of.abort("a", 0)
    assert of.load().running == 1
    of.abort("a")
    of.abort("unknown")
    assert not of.has_work
    assert of.load().kv_free == 1.0


def test_a_bad_row_fails_its_job_alone_and_its_blocks_are_cleared() -> None:
    runner = CountingRunner(bad=7)
    of = core(runner)
    of.submit(job("good"))
    of.submit(job("bad", first=7, n=2))
    outputs = drain(of)
    failed = [(job_id, output.code) for job_id, output in outputs if isinstance(output, JobFailed)]
    assert failed == [("bad", "bad_logits")]
    assert sum(job_id == "good" for job_id, _output in outputs) == 3
    assert runner.cleared
    assert of.load().kv_free == 1.0


def test_all_blocks_of_a_bad_job_are_cleared_but_those_of_others() -> None:
    """Two choices and a job that goes on share the first two blocks."""
    prompt = [7, 2, 3, 4, 5, 6, 7, 8, 9]

    class LateRunner(CountingRunner):
        def run(self, batch: SequenceOf[Scheduled]) -> list[RowResult]:
            rows = super().run(batch)
            bad = [item.seq.job_id == "bad" and item.seq.num_output == 2 for item in batch]
            return [
                RowResult(finite=False) if is_bad else row
                for is_bad, row in zip(bad, rows, strict=True)
            ]

    runner = LateRunner()
    of = core(runner)
    params = SequenceParams(max_tokens=8)
    of.submit(Job("good", prompt, params))
    of.step()
    of.submit(Job("bad", prompt, params, n=2))
    of.step()
    of.step()
    bad, also, good = of._jobs["bad"] + of._jobs["good"]
    shared, own = good.block_table[:2], bad.block_table[2:] + also.block_table[2:]
    assert bad.block_table[:2] == also.block_table[:2] == shared
    drain(of)
    assert sorted(runner.cleared) == sorted(own)
    assert len(own) == 2


def test_expired_jobs_are_dropped_before_they_are_computed() -> None:
    clock = Clock()
    of = core(clock=clock)
    of.submit(job("late", deadline_s=1.0))
    clock.now = 1.0
    [(job_id, output)] = drain(of)
    assert job_id == "late"
    assert isinstance(output, JobFailed)
    assert output.code == "deadline_exceeded"
    assert of.load().generation_tokens == 0
