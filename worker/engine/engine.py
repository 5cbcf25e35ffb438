"""The paged engine's core: jobs in, steps, outputs out. Synchronous; no torch, no process, no I/O.

`worker/engine/process.py` runs it in a process of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

from worker.engine.blocks import BlockPool
from worker.engine.protocol import (
    EngineLoad,
    Job,
    PromptOutput,
    RawLogprob,
    StepOutput,
)
from worker.engine.rates import PrefillPace, Rate
from worker.engine.scheduler import Scheduled, Scheduler
from worker.engine.sequence import Sequence, sequences_of

BAD_LOGITS: Final = "the model produced values that are not finite for this request"


@dataclass(frozen=True, slots=True)
class JobFailed:
    """A job that gets no further output; `code` is one of the error taxonomy."""

    code: str
    message: str


Output: TypeAlias = PromptOutput | StepOutput | JobFailed


@dataclass(frozen=True, slots=True)
class RowResult:
    """What the model gave for one batch entry.

    Attributes:
        token_id: the sampled token, None when the entry ends inside its prefill.
        logprob: of that token, when asked for.
        prompt_logprobs: of the prompt tokens that follow the computed ones, when asked for.
        finite: False when the row's logits were not finite: the sequence fails alone.
    """

    token_id: int | None = None
    logprob: RawLogprob | None = None
    prompt_logprobs: SequenceOf[RawLogprob] = ()
    finite: bool = True


class Runner(Protocol):
    """The model behind the engine."""

    def run(self, batch: SequenceOf[Scheduled]) -> list[RowResult]:
        """Compute a step; one result a batch entry."""

    def clear(self, blocks: list[int]) -> None:
        """Zero the content of blocks."""


class EngineCore:
    """Continuous batching over a runner.

    Args:
        runner: computes steps.
        pool: KV blocks.
        max_running, max_batch_tokens: bounds of a step.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        runner: Runner,
        pool: BlockPool,
        *,
        max_running: int,
        max_batch_tokens: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.runner = runner
        self._pool = pool
        self._scheduler = Scheduler(
            pool, max_running=max_running, max_batch_tokens=max_batch_tokens
        )
        self._clock = clock
        self._jobs: dict[str, list[Sequence]] = {}
        self._arrivals = 0
        self._steps = 0
        self._prompt_tokens = 0
        self._generation_tokens = 0
        self._prefill_rate = Rate()
        self._decode_rate = Rate()
        self._pace = PrefillPace()

    @property
    def has_work(self) -> bool:
        """Whether `step` would have anything to do."""
        return self._scheduler.has_work

    def submit(self, job: Job) -> None:
        """Queue a job."""
        self._arrivals += 1
        seqs = sequences_of(job, self._arrivals, self._clock())
        self._jobs[job.job_id] = seqs
        self._prompt_tokens += len(job.prompt_ids)
        for seq in seqs:
            self._scheduler.add(seq)

    def abort(self, job_id: str, index: int | None = None) -> None:
        """End a job, or one choice of it; what is unknown or already ended is no error."""
        seqs = self._jobs.get(job_id, [])
        self._drop([seq for seq in seqs if index is None or seq.index == index])

    def step(self) -> list[tuple[str, Output]]:
        """Compute one step; outputs with the id of their job."""
        outputs = self._drop_expired()
        batch = self._scheduler.schedule(self._pace.budget)
        if batch:
            started = self._clock()
            results = self.runner.run(batch)
            self._count(batch, self._clock() - started)
            outputs += self._take(batch, results)
        self._steps += 1
        return outputs

    def load(self) -> EngineLoad:
        """The load now."""
        scheduler, pool = self._scheduler, self._pool
        return EngineLoad(
            running=len(scheduler.running),
            waiting=scheduler.num_waiting,
            waiting_tokens=scheduler.waiting_tokens,
            kv_free=pool.num_free / pool.num_blocks,
            prefill_tps=self._prefill_rate.value,
            decode_tps=self._decode_rate.value,
            step=self._steps,
            busy=scheduler.has_work,
            preemptions=scheduler.preemptions,
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generation_tokens,
        )

    def _take(
        self, batch: SequenceOf[Scheduled], results: SequenceOf[RowResult]
    ) -> list[tuple[str, Output]]:
        outputs: list[tuple[str, Output]] = []
        good = [pair for pair in zip(batch, results, strict=True) if pair[1].finite]
        for item, result in zip(batch, results, strict=True):
            if not result.finite:
                outputs += self._fail_bad(item.seq)
        alive = [(item, result) for item, result in good if item.seq.job_id in self._jobs]
        for item, result in alive:
            outputs += self._prompt_output(item, result)
        self._scheduler.update(
            [item for item, _result in alive], [result.token_id for _item, result in alive]
        )
        for item, result in alive:
            if result.token_id is not None:
                outputs.append((item.seq.job_id, step_output(item.seq, result)))
        self._forget([item.seq for item, _result in alive if item.seq.finish])
        return outputs

    def _prompt_output(self, item: Scheduled, result: RowResult) -> list[tuple[str, Output]]:
        """Gather prompt log probabilities; a recomputed prefill yields them once only."""
        seq = item.seq
        if not seq.wants_prompt_logprobs or len(seq.prompt_logprobs) >= seq.prompt_len:
            return []
        if not seq.prompt_logprobs:
            seq.prompt_logprobs.append(RawLogprob(seq.token_ids[0], None))
        known = len(seq.prompt_logprobs) - (seq.num_computed + 1)
        seq.prompt_logprobs.extend(result.prompt_logprobs[max(0, known) :])
        if len(seq.prompt_logprobs) < seq.prompt_len:
            return []
        return [(seq.job_id, PromptOutput(list(seq.prompt_logprobs)))]

    def _fail_bad(self, seq: Sequence) -> list[tuple[str, Output]]:
        if seq.job_id not in self._jobs:
            return []
        self.runner.clear(seq.block_table)
        self._pool.discard(seq)
        self._drop(self._jobs[seq.job_id])
        return [(seq.job_id, JobFailed("bad_logits", BAD_LOGITS))]

    def _drop_expired(self) -> list[tuple[str, Output]]:
        late = dict.fromkeys(seq.job_id for seq in self._scheduler.expired(self._clock()))
        for job_id in late:
            self.abort(job_id)
        reason = "the request's deadline passed before it was finished"
        return [(job_id, JobFailed("deadline_exceeded", reason)) for job_id in late]

    def _drop(self, seqs: SequenceOf[Sequence]) -> None:
        self._scheduler.remove(seqs)
        self._forget(seqs)

    def _forget(self, seqs: Iterable[Sequence]) -> None:
        for seq in list(seqs):
            left = [one for one in self._jobs.get(seq.job_id, []) if one is not seq]
            if left:
                self._jobs[seq.job_id] = left
            else:
                self._jobs.pop(seq.job_id, None)

    def _count(self, batch: SequenceOf[Scheduled], seconds: float) -> None:
        prefill = sum(item.num_new for item in batch if item.num_new > 1)
        self._pace.observe(prefill, sum(item.num_new == 1 for item in batch), seconds)
        self._prefill_rate.add(prefill, seconds)
        self._decode_rate.add(sum(item.samples for item in batch), seconds)
        self._generation_tokens += sum(item.samples for item in batch)


def step_output(seq: Sequence, result: RowResult) -> StepOutput:
    token_id = seq.token_ids[-1]
    return StepOutput(
        index=seq.index,
        pos=seq.num_output - 1,
        ids=[token_id],
        logprobs=None if result.logprob is None else [result.logprob],
        finish=seq.finish,
        stop_token=token_id if seq.finish == "stop" else None,
        cached_tokens=seq.num_cached or 0,
    )
