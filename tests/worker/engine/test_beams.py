"""Beam search in the engine's core, over a model that is a hash; and the search's own rules."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

import pytest

from worker.engine.beams import BeamSearch, Candidates
from worker.engine.blocks import BlockPool
from worker.engine.engine import EngineCore, JobFailed, Output
from worker.engine.protocol import Job, RawLogprob, SequenceParams, StepOutput
from worker.engine.scheduler import Scheduled
from worker.engine.sequence import PENDING, Sequence
from worker.engine.steps import RowResult

VOCAB = 12
STOP = 0
SIZE = 4


def logprobs_of(tokens: SequenceOf[int]) -> list[float]:
    """The next token's, by a hash of all before it."""
    rng = random.Random(repr(tuple(tokens)))
    weights = [rng.random() ** 3 for _ in range(VOCAB)]
    return [math.log(weight / sum(weights)) for weight in weights]


@dataclass
class HashModel:
    """Keeps the tokens of each block as a KV pool would, so that a block that was not copied or not
    computed shows."""

    bad_after: int = 99
    pool: dict[int, dict[int, int]] = field(default_factory=dict)
    copies: int = 0
    sampled: dict[int, int] = field(default_factory=dict)

    def run(self, batch: SequenceOf[Scheduled]) -> list[RowResult]:
        found = [self._row(item) for item in batch]
        pairs = zip(batch, found, strict=True)
        self.sampled = {
            id(item.seq): row.token_id for item, row in pairs if row.token_id is not None
        }
        return found

    def launch(self, batch: SequenceOf[Scheduled]) -> HashStep:
        return HashStep(self.run(batch))

    def clear(self, blocks: list[int]) -> None:
        pass

    def copy(self, pairs: SequenceOf[tuple[int, int]]) -> None:
        self.copies += len(pairs)
        for source, target in pairs:
            self.pool[target] = dict(self.pool[source])

    def _row(self, item: Scheduled) -> RowResult:
        seq = item.seq
        for at in range(item.start, item.start + item.num_new):
            token = seq.token_ids[at]
            token = self.sampled[id(seq)] if token == PENDING else token
            self.pool.setdefault(seq.block_table[at // SIZE], {})[at % SIZE] = token
        if not item.samples:
            return RowResult()
        seen = [self.pool[seq.block_table[at // SIZE]][at % SIZE] for at in range(seq.num_tokens)]
        if len(seen) > self.bad_after:
            return RowResult(finite=False)
        found = logprobs_of(seen)
        ids = sorted(range(VOCAB), key=lambda one: -found[one])
        scores = [found[one] for one in ids]
        if not seq.is_beam:
            return RowResult(ids[0])
        return RowResult(0, candidates=Candidates(ids, scores, scores, [(ids[0], scores[0])]))


@dataclass
class HashStep:
    found: list[RowResult]

    def results(self) -> list[RowResult]:
        return self.found


def core(
    model: HashModel, num_blocks: int = 200, max_running: int = 40, **flags: bool
) -> EngineCore:
    return EngineCore(
        model, BlockPool(num_blocks, SIZE), max_running=max_running, max_batch_tokens=40, **flags
    )


def job(number: int, width: int = 3, n: int = 2, max_tokens: int = 14) -> Job:
    prompt = [1 + (number * 5 + at) % (VOCAB - 1) for at in range(3 + 2 * number)]
    params = SequenceParams(
        max_tokens=max_tokens,
        temperature=0.0,
        stop_token_ids=(STOP,),
        beam_width=width,
        logprobs=1 if width else None,
    )
    return Job(str(number), prompt, params, n=n)


def work() -> list[Job]:
    """Searches, and greedy requests among them."""
    return [job(number, width=[4, 0, 2, 3][number % 4], n=1 + number % 2) for number in range(8)]


def outputs_of(of: EngineCore, jobs: SequenceOf[Job]) -> dict[tuple[str, int], list[Output]]:
    waiting, found = list(jobs), {}
    while waiting or of.has_work:
        for one in waiting[:2]:
            of.submit(one)
        del waiting[:2]
        for job_id, output in of.step():
            index = output.index if isinstance(output, StepOutput) else -1
            found.setdefault((job_id, index), []).append(output)
    return found


def texts_of(of: EngineCore, jobs: SequenceOf[Job]) -> dict[tuple[str, int], list[int]]:
    return {
        key: [one for output in outputs if isinstance(output, StepOutput) for one in output.ids]
        for key, outputs in outputs_of(of, jobs).items()
    }


def alone(one: Job) -> list[list[int]]:
    """The search by itself, without an engine."""
    search = BeamSearch(one.params)
    while search.running:
        found = []
        for text in search.running:
            scores = logprobs_of([*one.prompt_ids, *text.ids])
            ids = sorted(range(VOCAB), key=lambda token: -scores[token])
            found.append(Candidates(ids, [scores[token] for token in ids]))
        search.advance(found)
    return [text.ids for text in search.best(one.n)]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize(("num_blocks", "max_running"), [(200, 40), (200, 3), (9, 40), (9, 2)])
def test_texts_do_not_depend_on_room_or_company(
    num_blocks: int, max_running: int, overlap: bool
) -> None:
    of = core(HashModel(), num_blocks, max_running, overlap=overlap)
    found = texts_of(of, work())
    for one in work():
        if one.params.beam_width:
            assert [found[one.job_id, index] for index in range(one.n)] == alone(one)
    assert found == texts_of(core(HashModel()), work())
    assert of.load().kv_free == 1.0
    assert of.load().running == 0
    assert (of.load().preemptions > 0) == (num_blocks == 9 or max_running < 4)


def test_the_prompt_is_shared_and_its_last_block_is_copied() -> None:
    model = HashModel()
    of = core(model, num_blocks=16)
    of.submit(Job("a", list(range(1, 11)), job(0, width=4).params, n=4))
    of.step()
    assert of.load().running == 4
    assert model.copies == 3
    assert of.load().kv_free == pytest.approx(1 - (2 + 4) / 16)


def test_an_answer_comes_at_the_end_with_its_log_probabilities() -> None:
    outputs = outputs_of(core(HashModel()), [job(2)])
    alive, last = outputs["2", 0][:-1], outputs["2", 0][-1]
    assert all(isinstance(one, StepOutput) and not one.ids and not one.finish for one in alive)
    assert isinstance(last, StepOutput)
    assert last.logprobs is not None
    tokens = list(job(2).prompt_ids)
    for token, logprob in zip(last.ids, last.logprobs, strict=True):
        scores = logprobs_of(tokens)
        best = max(range(VOCAB), key=lambda one: scores[one])
        assert logprob == RawLogprob(token, scores[token], [(best, scores[best])])
        tokens.append(token)


def test_a_long_answer_comes_in_pieces() -> None:
    params = SequenceParams(max_tokens=600, beam_width=2, logprobs=0)
    outputs = outputs_of(core(HashModel(bad_after=9999), 800), [Job("a", [1, 2], params, n=2)])
    for index in (0, 1):
        told = [one for one in outputs["a", index] if isinstance(one, StepOutput) and one.ids]
        assert [(one.pos, len(one.ids), one.finish) for one in told] == [
            (0, 256, None),
            (256, 256, None),
            (512, 88, "length"),
        ]
        for one in told:
            assert one.logprobs is not None
            assert [logprob.token_id for logprob in one.logprobs] == one.ids


def test_an_aborted_search_gives_all_blocks_back() -> None:
    of = core(HashModel(), max_running=2)
    of.submit(job(0, width=4))
    of.submit(job(4, width=3))
    for _ in range(4):
        of.step()
    of.abort("0")
    of.abort("4")
    assert not of.has_work
    assert of.load().kv_free == 1.0


def test_a_search_with_bad_logits_fails_alone() -> None:
    of = core(HashModel(bad_after=12))
    outputs = outputs_of(of, [job(0, width=0, max_tokens=4), job(2), job(3)])
    failed = {key[0] for key, own in outputs.items() if isinstance(own[-1], JobFailed)}
    assert failed == {"2", "3"}
    assert of.load().kv_free == 1.0


def test_a_beam_that_has_lost_its_blocks_is_not_computed_twice_in_a_round() -> None:
    """It has its candidates; only its continuations need keys and values again."""
    seen: list[tuple[int, ...]] = []

    class Watching(HashModel):
        def _row(self, item: Scheduled) -> RowResult:
            if item.samples:
                seen.append(tuple(item.seq.token_ids))
            return super()._row(item)

    of = core(Watching(), num_blocks=9, max_running=1)
    texts_of(of, [job(1, width=4)])
    assert of.load().preemptions > 0
    assert len(seen) == len(set(seen))


def search(width: int = 2, **fields: float) -> BeamSearch:
    params = SequenceParams(
        **{"max_tokens": 9, "stop_token_ids": (STOP,), "beam_width": width, **fields}  # type: ignore[arg-type]
    )
    return BeamSearch(params)


def test_an_end_counts_only_among_the_best_candidates() -> None:
    of = search()
    assert of.advance([Candidates([1, 2, STOP, 3], [-1.0, -2.0, -3.0, -4.0])]) == [0, 0]
    assert of.best(2) == []
    parents = of.advance([Candidates([1, STOP], [-1.0, -1.5]), Candidates([2, 3], [-1.0, -2.0])])
    assert parents == [0, 1]
    assert [(text.ids, text.finish) for text in of.best(2)] == [([1, STOP], "stop")]


def test_the_length_penalty_ranks_and_ends() -> None:
    """A search with two ends is over once its best beam, at its length, ranks behind them."""
    of = search(length_penalty=0.0)
    of.advance([Candidates([STOP, 1, 2], [-0.5, -1.0, -2.0])])
    assert of.running
    of.advance([Candidates([STOP, 3], [-0.1, -3.0]), Candidates([4, 5], [-3.0, -4.0])])
    assert of.running == []
    assert [(text.ids, text.score) for text in of.best(2)] == [
        ([STOP], -0.5),
        ([1, STOP], -1.1),
    ]


def test_branches_get_numbers_of_their_own() -> None:
    of = core(HashModel())
    of.submit(job(0, width=4))
    for _ in range(6):
        of.step()
        seqs: list[Sequence] = of._jobs["0"]
        assert sorted(seq.index for seq in seqs) == [0, 1, 2, 3]
        assert len({tuple(seq.token_ids) for seq in seqs}) == 4
