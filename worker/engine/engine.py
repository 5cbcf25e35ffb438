"""The paged engine's core: jobs in, steps, outputs out. No torch, no process, no I/O.

`worker/engine/process.py` runs it in a process of its own.

With `overlap` a step is scheduled and launched before the results of the one before are taken, so
that the device never waits for the host. What the earlier step samples stands as `PENDING` in the
sequences meanwhile. When its results come, sequences that have ended drop out: what the later step
computes for them is ignored, and their blocks can be given away at once, since steps run in order.
A step with a sequence that reads its own last tokens (penalties, log probabilities of the prompt)
is waited for before the next one is scheduled.

A step that cannot be computed ends no request that is not its cause. One that found no memory is
made smaller. After any other exception, and where it has become as small as it can be, it is
computed in parts, down to single entries, and those that raise again alone fail; keys and values
are written anew, and noise comes from the position, so the others get the tokens that they would
have got. When nothing can be computed, `EngineBroken` is raised.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from typing import Final, TypeAlias, cast

from worker.engine.beams import BeamGroup, BeamSearch, Candidates
from worker.engine.blocks import BlockPool
from worker.engine.drafts import drafts as drafted_for
from worker.engine.faults import FAILED, NO_MEMORY, EngineBroken, OutOfMemory, StepCaps
from worker.engine.grammar import GrammarError, Grammars, Matcher
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
from worker.engine.steps import Launcher, Pending, RowResult, Runner

log = logging.getLogger(__name__)

BAD_LOGITS: Final = "the model produced values that are not finite for this request"


@dataclass(frozen=True, slots=True)
class JobFailed:
    """A job that gets no further output; `code` is one of the error taxonomy."""

    code: str
    message: str


Output: TypeAlias = PromptOutput | StepOutput | JobFailed


@dataclass(frozen=True, slots=True)
class _Done:
    """A step whose results are there."""

    found: list[RowResult]

    def results(self) -> list[RowResult]:
        return self.found


@dataclass(slots=True)
class _Flight:
    """A step that was launched.

    Attributes:
        batch: what it computes. counted: the part of it that still counts.
        late: sequences, by `id`, whose tokens were not those that the step after it went on from.
        lost: whether its results could not be had.
    """

    batch: list[Scheduled]
    pending: Pending
    started_s: float
    lost: bool = False
    counted: list[Scheduled] = field(default_factory=list)
    late: set[int] = field(default_factory=set)


_Settle: TypeAlias = Callable[[Scheduled, RowResult], list[tuple[str, Output]]]


class EngineCore:
    """Continuous batching over a runner.

    Args:
        runner: computes steps.
        pool: KV blocks.
        max_running, max_batch_tokens: bounds of a step.
        overlap: whether to launch a step before the one before has ended; takes a `Launcher`.
        drafts: whether to draft tokens by prompt lookup; not together with `overlap`.
        least_prefill: prompt tokens that a step always takes beside its decodes.
        vocab_size, eos_token_ids: of the model, for grammars.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        runner: Runner | Launcher,
        pool: BlockPool,
        *,
        max_running: int,
        max_batch_tokens: int,
        overlap: bool = False,
        drafts: bool = False,
        least_prefill: int = 16,
        vocab_size: int = 0,
        eos_token_ids: SequenceOf[int] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.runner = runner
        self._overlap = overlap
        self._drafts = drafts
        self._flight: _Flight | None = None
        self._landed_s = 0.0
        self._pool = pool
        self._scheduler = Scheduler(
            pool, max_running=max_running, max_batch_tokens=max_batch_tokens
        )
        self._caps = StepCaps(max_running, max_batch_tokens)
        self._suspects: list[Sequence] = []
        self._out_of_memory = 0
        self._clock = clock
        self._jobs: dict[str, list[Sequence]] = {}
        self._groups: dict[str, BeamGroup] = {}
        self._vocab_size, self._eos_token_ids = vocab_size, eos_token_ids
        self._described = ""
        self._grammars: Grammars | None = None
        self._refused: list[tuple[str, Output]] = []
        self._arrivals = 0
        self._steps = 0
        self._prompt_tokens = 0
        self._generation_tokens = 0
        self._drafted_tokens = 0
        self._accepted_tokens = 0
        self._prefill_rate = Rate()
        self._decode_rate = Rate()
        self._pace = PrefillPace(least=least_prefill)

    @property
    def has_work(self) -> bool:
        """Whether `step` would have anything to do."""
        return self._scheduler.has_work or self._flight is not None or bool(self._refused)

    def submit(self, job: Job) -> None:
        """Queue a job; one that cannot be taken, as by its grammar, fails with the next step."""
        try:
            self._take_in(job)
        except GrammarError as error:
            self._refused.append((job.job_id, JobFailed("invalid_grammar", str(error))))
        except Exception:
            log.exception("job %s cannot be taken", job.job_id)
            self.abort(job.job_id)
            self._refused.append((job.job_id, JobFailed("internal_error", FAILED)))

    def _take_in(self, job: Job) -> None:
        self._arrivals += 1
        matcher = self._matcher(job.params.grammar)
        seqs = sequences_of(job, self._arrivals, self._clock(), matcher)
        self._jobs[job.job_id] = seqs
        if job.params.beam_width:
            self._groups[job.job_id] = BeamGroup(job, list(seqs), BeamSearch(job.params))
        self._prompt_tokens += len(job.prompt_ids)
        for seq in seqs:
            self._scheduler.add(seq)

    def use_tokenizer(self, described: str) -> None:
        """As `Engine.use_tokenizer`."""
        self._described, self._grammars = described, None

    def _matcher(self, grammar: str | None) -> Matcher | None:
        if grammar is None:
            return None
        if self._grammars is None:
            self._grammars = Grammars(self._described, self._vocab_size, self._eos_token_ids)
        return self._grammars.begin(grammar)

    def abort(self, job_id: str, index: int | None = None) -> None:
        """End a job, or one choice of it; what is unknown or already ended is no error."""
        seqs = self._jobs.get(job_id, [])
        self._drop([seq for seq in seqs if index is None or seq.index == index])

    def step(self) -> list[tuple[str, Output]]:
        """Compute a step, or launch it and take the one before; outputs with their job's id."""
        outputs: list[tuple[str, Output]] = [*self._refused, *self._drop_expired()]
        self._refused.clear()
        before = self._flight
        if before and any(item.seq.reads_tokens for item in before.batch):
            outputs += self._land(before)
        batch = self._schedule()
        launched = self._launch(batch) if batch else None
        if before and before is self._flight:
            outputs += self._land(before)
            if before.lost:  # this step went on from what that one stored
                self._restart(batch)
                launched = None
        if isinstance(launched, _Flight):
            self._go_on(launched, before.late if before else set())
            if isinstance(launched.pending, _Done):
                outputs += self._land(launched)
        elif launched is not None:
            outputs += self._recover(batch, launched)
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
            busy=self.has_work,
            preemptions=scheduler.preemptions,
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generation_tokens,
            out_of_memory=self._out_of_memory,
            drafted_tokens=self._drafted_tokens,
            accepted_tokens=self._accepted_tokens,
        )

    def _schedule(self) -> list[Scheduled]:
        scheduler, caps = self._scheduler, self._caps
        caps.ease(self._clock())
        decodes = scheduler.decodes
        scheduler.limit(caps.running, caps.tokens_beside(len(decodes)))
        prefill = self._pace.budget(scheduler.num_prefills, len(decodes))
        step_tokens = self._pace.step_tokens if self._drafts else None
        if step_tokens is None:
            return scheduler.schedule(prefill)
        return scheduler.schedule(prefill, drafted_for(decodes, step_tokens))

    def _launch(self, batch: list[Scheduled], *, waits: bool = False) -> _Flight | Exception:
        """Begin a step; what it raised, when it cannot be computed.

        It is waited for if it `waits`, and while sequences of a lost step are computed again, so
        that what raises is found here.
        """
        started_s = self._clock()
        try:
            if self._overlap and not self._suspects and not waits:
                pending: Pending = cast(Launcher, self.runner).launch(batch)
            else:
                pending = _Done(self.runner.run(batch))
        except EngineBroken:
            raise
        except OutOfMemory:
            return OutOfMemory()  # anew: the frames of that one hold what filled the memory
        except Exception as fault:
            return fault
        return _Flight(batch, pending, started_s)

    # ---- steps that cannot be computed ----------------------------------------------------------

    def _recover(self, batch: list[Scheduled], fault: Exception) -> list[tuple[str, Output]]:
        """Go on without a step: none of it was counted."""
        left = self._left_of(batch)
        if not isinstance(fault, OutOfMemory):
            log.error("a step of %d failed: it is computed in parts", len(left), exc_info=fault)
            return self._isolate(left)
        self._out_of_memory += 1
        if len(left) < len(batch):
            return []  # what the step before has ended makes the next one smaller
        return self._do_with_less(batch)

    def _left_of(self, batch: SequenceOf[Scheduled]) -> list[Scheduled]:
        """What still runs of it."""
        return [item for item in batch if self._is_alive(item.seq) and item.seq.block_table]

    def _do_with_less(self, batch: SequenceOf[Scheduled]) -> list[tuple[str, Output]]:
        """Find memory for a step that found none: prefills are cut, then who finds none alone
        fails, and only where nobody does the youngest gives its place up."""
        num_tokens = sum(item.num_new for item in batch)
        if num_tokens > len(batch):
            self._caps.lower(self._clock(), tokens=num_tokens // 2)
            return []
        outputs = self._isolate(batch)
        left = self._left_of(batch)
        if len(left) == len(batch) > 1:
            victim = self._scheduler.preempt(item.seq for item in left)
            self._caps.lower(self._clock(), running=len(self._scheduler.running))
            log.warning("out of memory: a sequence of job %s waits", victim.job_id)
        return outputs

    def _isolate(self, batch: SequenceOf[Scheduled]) -> list[tuple[str, Output]]:
        """Compute a step in halves, and of those that raise the halves; who raises alone fails.

        Raises:
            EngineBroken: none could be computed, nor a text that is known to work.
        """
        outputs: list[tuple[str, Output]] = []
        started_s = self._clock()
        done: list[Scheduled] = []
        found: list[RowResult] = []
        parts = _halves(batch)
        while parts:
            part = self._left_of(parts.pop(0))  # another choice of a job may have failed
            if not part:
                continue
            launched = self._launch(part, waits=True)
            if isinstance(launched, _Flight):
                done += part
                found += launched.pending.results()
            elif len(part) > 1:
                parts = [*_halves(part), *parts]
            else:
                outputs += self._fail_alone(part[0], launched)
        if not done:
            if outputs:
                self._check()
            return outputs
        flight = _Flight(done, _Done(found), started_s)
        self._go_on(flight, set())
        return outputs + self._land(flight)

    def _fail_alone(self, item: Scheduled, fault: Exception) -> list[tuple[str, Output]]:
        """Fail the job of an entry that raised alone, unless a smaller piece may find memory."""
        if not isinstance(fault, OutOfMemory):
            log.error("job %s failed", item.seq.job_id, exc_info=fault)
            return self._fail(item.seq, "internal_error", FAILED)
        self._out_of_memory += 1
        if item.num_new > 1:
            self._caps.lower(self._clock(), tokens=item.num_new // 2)
            return []
        log.warning("out of memory: job %s fails", item.seq.job_id)
        self._caps.reset()
        return self._fail(item.seq, "out_of_memory", NO_MEMORY)

    def _check(self) -> None:
        """Whether more can be computed after all that was asked for has failed."""
        try:
            self.runner.check()
        except Exception as fault:
            raise EngineBroken("the model does not run any more") from fault

    def _restart(self, batch: SequenceOf[Scheduled]) -> None:
        """Compute the sequences of a lost step again from their first tokens."""
        seqs = [item.seq for item in batch if self._is_alive(item.seq)]
        self._suspects += seqs
        self._scheduler.restart(seqs)

    def _fail_raised(self, seq: Sequence) -> list[tuple[str, Output]]:
        """Fail the job whose computation has just raised."""
        log.exception("job %s failed", seq.job_id)
        return self._fail(seq, "internal_error", FAILED)

    # ---- steps ----------------------------------------------------------------------------------

    def _go_on(self, flight: _Flight, late: set[int]) -> None:
        """Count a launched step as computed, but for what the results before it made void."""
        for item in flight.batch:
            if self._is_alive(item.seq) and id(item.seq) not in late:
                flight.counted.append(item)
        self._scheduler.advance(flight.counted)
        self._flight = flight

    def _land(self, flight: _Flight) -> list[tuple[str, Output]]:
        """Wait for a step and take its results; what was in a lost one is computed again."""
        self._flight = None
        try:
            results = flight.pending.results()
        except EngineBroken:
            raise
        except Exception:
            log.exception("the results of a step of %d are lost", len(flight.batch))
            flight.lost = True
            self._restart(flight.batch)
            return []
        now_s = self._clock()
        self._count(flight.batch, results, now_s - max(flight.started_s, self._landed_s))
        self._landed_s = now_s
        counted = {id(item) for item in flight.counted}
        pairs = zip(flight.batch, results, strict=True)
        return self._take([pair for pair in pairs if id(pair[0]) in counted], flight.late)

    def _take(
        self, pairs: SequenceOf[tuple[Scheduled, RowResult]], late: set[int]
    ) -> list[tuple[str, Output]]:
        outputs: list[tuple[str, Output]] = []
        for item, result in pairs:
            if not result.finite and self._is_alive(item.seq):
                outputs += self._fail(item.seq, "bad_logits", BAD_LOGITS)
        alive = [pair for pair in pairs if pair[1].finite and self._is_alive(pair[0].seq)]
        late.update(id(item.seq) for item, result in alive if result.late)
        self._suspects = [
            seq
            for seq in self._suspects
            if not any(seq is item.seq for item, _result in alive if item.samples)
        ]
        outputs += self._each(alive, self._prompt_output)
        outputs += self._each(alive, self._resolve)
        ended = [item.seq for item, _result in alive if item.seq.finish]
        self._scheduler.remove(ended)
        outputs += self._each(alive, self._tell)
        self._forget(ended)
        return outputs

    def _each(
        self, pairs: SequenceOf[tuple[Scheduled, RowResult]], settle: _Settle
    ) -> list[tuple[str, Output]]:
        """One thing for all; a job that it raises for fails."""
        outputs: list[tuple[str, Output]] = []
        for item, result in pairs:
            if not self._is_alive(item.seq):
                continue
            try:
                outputs += settle(item, result)
            except EngineBroken:
                raise
            except Exception:
                outputs += self._fail_raised(item.seq)
        return outputs

    def _resolve(self, item: Scheduled, result: RowResult) -> list[tuple[str, Output]]:
        more = [one.token_id for one in result.more if one.token_id is not None]
        self._drafted_tokens += len(item.draft)
        self._accepted_tokens += self._scheduler.resolve(item, result.token_id, more)
        return []

    def _tell(self, item: Scheduled, result: RowResult) -> list[tuple[str, Output]]:
        """What a sequence gives out after a step."""
        seq = item.seq
        if seq.matcher is not None and seq.matcher.error:
            return self._fail_grammar(seq, seq.matcher.error)
        if seq.is_beam:
            return self._search(seq, result.candidates)
        if result.token_id is None:
            return []
        output = step_output(seq, result)
        self._generation_tokens += len(output.ids)
        return [(seq.job_id, output)]

    def _search(self, seq: Sequence, found: Candidates | None) -> list[tuple[str, Output]]:
        """Take what a step found for a beam; the search goes on when it was the last one's."""
        group = self._groups[seq.job_id]
        if found is None or not group.take(seq, found):
            return []
        if copies := group.go_on(self._scheduler):
            self.runner.copy(copies)
        self._jobs[seq.job_id] = list(group.seqs)
        if not group.seqs:
            self._end(seq.job_id)
        outputs = group.outputs()
        self._generation_tokens += sum(len(output.ids) for output in outputs)
        return [(seq.job_id, output) for output in outputs]

    def _is_alive(self, seq: Sequence) -> bool:
        return any(one is seq for one in self._jobs.get(seq.job_id, ()))

    def _prompt_output(self, item: Scheduled, result: RowResult) -> list[tuple[str, Output]]:
        """Gather prompt log probabilities; a recomputed prefill yields them once only."""
        seq = item.seq
        if not seq.wants_prompt_logprobs or len(seq.prompt_logprobs) >= seq.prompt_len:
            return []
        if not seq.prompt_logprobs:
            seq.prompt_logprobs.append(RawLogprob(seq.token_ids[0], None))
        known = len(seq.prompt_logprobs) - (item.start + 1)
        seq.prompt_logprobs.extend(result.prompt_logprobs[max(0, known) :])
        if len(seq.prompt_logprobs) < seq.prompt_len:
            return []
        return [(seq.job_id, PromptOutput(list(seq.prompt_logprobs)))]

    def _fail(self, seq: Sequence, code: str, reason: str) -> list[tuple[str, Output]]:
        """Fail a job; its blocks are cleared, but for those that other jobs go on with."""
        seqs = self._jobs[seq.job_id]
        held = {block for one in seqs for block in one.block_table}
        for one in seqs:
            self._pool.discard(one)
        self._drop(seqs)
        self.runner.clear(sorted(filter(self._pool.is_free, held)))
        return [(seq.job_id, JobFailed(code, reason))]

    def _fail_grammar(self, seq: Sequence, reason: str) -> list[tuple[str, Output]]:
        if seq.job_id not in self._jobs:
            return []  # another choice of it has failed already
        self._drop(self._jobs[seq.job_id])
        return [(seq.job_id, JobFailed("invalid_grammar", reason))]

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
            self._suspects = [one for one in self._suspects if one is not seq]
            left = [one for one in self._jobs.get(seq.job_id, []) if one is not seq]
            if left:
                self._jobs[seq.job_id] = left
            else:
                self._end(seq.job_id)

    def _end(self, job_id: str) -> None:
        self._jobs.pop(job_id, None)
        self._groups.pop(job_id, None)

    def _count(
        self, batch: SequenceOf[Scheduled], results: SequenceOf[RowResult], seconds: float
    ) -> None:
        prefill = sum(item.num_new for item in batch if not item.is_decode)
        if prefill or not any(item.draft for item in batch):
            self._pace.observe(prefill, sum(item.num_new for item in batch) - prefill, seconds)
        self._prefill_rate.add(prefill, seconds)
        sampled = sum(item.samples for item in batch) + sum(len(one.more) for one in results)
        self._decode_rate.add(sampled, seconds)


def _halves(batch: SequenceOf[Scheduled]) -> list[list[Scheduled]]:
    middle = len(batch) // 2
    return [part for part in (list(batch[:middle]), list(batch[middle:])) if part]


def step_output(seq: Sequence, result: RowResult) -> StepOutput:
    """What a sequence gained since it was last asked: a token, and what its grammar forced, or
    what it had drafted."""
    pos, seq.num_told = seq.num_told, seq.num_output
    ids = seq.token_ids[seq.prompt_len + pos :]
    found = [one.logprob for one in (result, *result.more)[: len(ids)] if one.logprob is not None]
    return StepOutput(
        index=seq.index,
        pos=pos,
        ids=ids,
        logprobs=found or None,
        finish=seq.finish,
        stop_token=seq.stop_token,
        cached_tokens=seq.num_cached or 0,
    )
