"""A model for tests of the engine's core, whose next token is a hash of all before it."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from typing import Any

from worker.engine.blocks import BlockPool
from worker.engine.engine import EngineCore, JobFailed, Output
from worker.engine.protocol import Job, SequenceParams, StepOutput
from worker.engine.scheduler import Scheduled, Scheduler
from worker.engine.sequence import PENDING
from worker.engine.steps import RowResult

VOCAB = 50
STOP = 7


@dataclass
class Step:
    """Results that are made at the launch, as by a device, and read later."""

    found: list[RowResult]
    waits: list[str]

    def results(self) -> list[RowResult]:
        self.waits.append("read")
        return self.found


@dataclass
class HashRunner:
    """The next token is a hash of all tokens before it, so one wrong token changes all after it.

    Every `late_each`th token is not the one that the next step goes on from. Sequences that begin
    with `bad` have no finite logits once they have `bad_after` tokens.
    """

    late_each: int = 0
    bad: int = -1
    bad_after: int = 0
    sampled: dict[int, int] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)
    count: int = 0

    def launch(self, batch: SequenceOf[Scheduled]) -> Step:
        self.events.append("launch")
        before, self.sampled = self.sampled, {}
        found = []
        for item in batch:
            seq = item.seq
            assert PENDING not in seq.token_ids[:-1]
            tokens = [before[id(seq)] if one == PENDING else one for one in seq.token_ids]
            assert item.start + item.num_new <= len(tokens)
            if not item.samples:
                found.append(RowResult())
                continue
            if seq.token_ids[0] == self.bad and len(tokens) >= self.bad_after:
                self.sampled[id(seq)] = 0
                found.append(RowResult(finite=False))
                continue
            token = hash(tuple(tokens)) % VOCAB
            self.count += 1
            late = bool(self.late_each) and self.count % self.late_each == 0
            self.sampled[id(seq)] = token + 1 if late else token
            found.append(RowResult(token, late=late))
        return Step(found, self.events)

    def run(self, batch: SequenceOf[Scheduled]) -> list[RowResult]:
        return self.launch(batch).found

    def clear(self, blocks: list[int]) -> None:
        pass


def core(runner: HashRunner, overlap: bool, num_blocks: int = 40) -> EngineCore:
    return EngineCore(
        runner, BlockPool(num_blocks, 4), max_running=6, max_batch_tokens=19, overlap=overlap
    )


def settle(
    scheduler: Scheduler, batch: SequenceOf[Scheduled], sampled: SequenceOf[int | None]
) -> None:
    """Take the tokens of a step, one a batch entry, and remove what they end."""
    for item, token_id in zip(batch, sampled, strict=True):
        scheduler.resolve(item, token_id)
    scheduler.remove([item.seq for item in batch if item.seq.finish])


def jobs(seed: int) -> list[Job]:
    """Prompts of several lengths, some with the same beginning, some with several choices."""
    rng = random.Random(seed)
    shared = [rng.randrange(VOCAB) for _ in range(13)]
    made = []
    for number in range(14):
        prompt = shared * (rng.random() < 0.5) + [
            rng.randrange(VOCAB) for _ in range(rng.randint(1, 25))
        ]
        extra: dict[str, Any] = {"repetition_penalty": 1.1} if rng.random() < 0.1 else {}
        params = SequenceParams(max_tokens=rng.randint(1, 30), stop_token_ids=(STOP,), **extra)
        made.append(Job(str(number), prompt, params, n=rng.choice([1, 1, 2])))
    return made


def outputs_of(of: EngineCore, work: list[Job], abort_seed: int | None = None) -> dict[Any, Any]:
    """Tokens and ends of each choice; new jobs come in while others run."""
    waiting = list(work)
    rng = random.Random(abort_seed)
    found: dict[Any, Any] = defaultdict(list)
    while waiting or of.has_work:
        for _ in range(rng.randint(0, 3)):
            if waiting:
                of.submit(waiting.pop(0))
        if abort_seed is not None and rng.random() < 0.1:
            of.abort(str(rng.randrange(len(work))), rng.choice([None, 0, 1]))
        for job_id, output in of.step():
            note(found, job_id, output)
    return found


def note(found: dict[Any, Any], job_id: str, output: Output) -> None:
    if isinstance(output, JobFailed):
        found[job_id].append(output.code)
        return
    assert isinstance(output, StepOutput)
    own = found[job_id, output.index]
    assert output.pos == sum(isinstance(one, int) for one in own)
    own += output.ids
    if output.finish:
        own.append(output.finish)
