"""Beam search: which texts go on and which are the best. Bookkeeping only, no torch.

The algorithm is that of transformers' `generate(num_beams=..., early_stopping=False)`: of all
continuations of the running beams the likeliest that end nothing go on; one that ends is kept if
it is among the `width` likeliest, ranked by its log probability divided by its length to the power
of `length_penalty`. The search is over when the limit is reached, or when `width` texts have ended
and the best running beam, at its length now, would rank behind them all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from typing import Final

from worker.engine.protocol import Finish, Job, RawLogprob, SequenceParams, StepOutput
from worker.engine.scheduler import Scheduler
from worker.engine.sequence import Sequence, branch_of

_NOTHING: Final = float("-inf")
_PIECE: Final = 256
"""Tokens in one output of an answer, so that reading a long one holds up no event loop."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """The likeliest next tokens of a beam.

    Attributes:
        ids, scores: tokens and their log probabilities with penalties, best first.
        logprobs: theirs under the raw distribution; empty when not asked for.
        top: (token id, log probability) of the raw distribution, best first, when asked for.
    """

    ids: SequenceOf[int]
    scores: SequenceOf[float]
    logprobs: SequenceOf[float] = ()
    top: SequenceOf[tuple[int, float]] = ()

    def raw(self, rank: int) -> list[RawLogprob]:
        """The log probability of the candidate of that rank, when asked for."""
        if not self.logprobs:
            return []
        return [RawLogprob(self.ids[rank], self.logprobs[rank], list(self.top))]


def num_candidates(params: SequenceParams) -> int:
    """Next tokens of each beam that a search must see: enough to go on if every end is among
    them."""
    return params.beam_width + len(params.stop_token_ids)


@dataclass(frozen=True, slots=True)
class Text:
    """A text under way or ended; `score` is the sum of its tokens' scores, once ended its rank."""

    score: float
    ids: list[int]
    logprobs: list[RawLogprob]
    finish: Finish | None = None
    stop_token: int | None = None


class BeamSearch:
    """The texts of one search.

    Attributes:
        running: those that go on, best first; empty when the search is over.

    Args:
        params: of the job.
    """

    def __init__(self, params: SequenceParams) -> None:
        self.running = [Text(0.0, [], [])]
        self._params = params
        self._ended: list[Text] = []

    def best(self, number: int) -> list[Text]:
        """The best texts that have ended, best first."""
        return self._ended[:number]

    def advance(self, found: SequenceOf[Candidates]) -> list[int]:
        """Take a step: the candidates of each running text.

        Returns:
            For each text that goes on, best first, the number of the one that it continues; its
            new token is its last.
        """
        width, length = self._params.beam_width, len(self.running[0].ids) + 1
        ranked = sorted(
            (
                (self.running[beam].score + score, beam, rank)
                for beam, candidates in enumerate(found)
                for rank, score in enumerate(candidates.scores)
                if score > _NOTHING
            ),
            key=lambda one: -one[0],
        )
        parents: list[int] = []
        goes_on: list[Text] = []
        for place, (score, beam, rank) in enumerate(ranked):
            token_id = found[beam].ids[rank]
            stops = self._stops(token_id, length)
            if stops or length == self._params.max_tokens:
                if place < width:
                    self._end(self._grown(found[beam], beam, rank, score), token_id, stops)
            elif len(goes_on) < width:
                parents.append(beam)
                goes_on.append(self._grown(found[beam], beam, rank, score))
            elif place >= width:
                break
        self._ended = sorted(self._ended, key=lambda text: -text.score)[:width]
        self.running = goes_on
        if self._is_over(length):
            self.running, parents = [], []
        return parents

    def _stops(self, token_id: int, length: int) -> bool:
        params = self._params
        return token_id in params.stop_token_ids and length >= params.min_tokens

    def _grown(self, candidates: Candidates, beam: int, rank: int, score: float) -> Text:
        before = self.running[beam]
        return Text(
            score,
            [*before.ids, candidates.ids[rank]],
            before.logprobs + candidates.raw(rank),
        )

    def _end(self, text: Text, token_id: int, stops: bool) -> None:
        self._ended.append(
            Text(
                self._rank(text.score, len(text.ids)),
                text.ids,
                text.logprobs,
                "stop" if stops else "length",
                token_id if stops else None,
            )
        )

    def _rank(self, score: float, length: int) -> float:
        return score / math.pow(length, self._params.length_penalty)

    def _is_over(self, length: int) -> bool:
        if not self.running:
            return True
        if len(self._ended) < self._params.beam_width:
            return False
        return self._rank(self.running[0].score, length) <= self._ended[-1].score


@dataclass(slots=True)
class BeamGroup:
    """A search and the sequences that compute it: one for each running text, in that order.

    A sequence whose candidates are there is parked until those of all others are.

    Attributes:
        num_cached: prompt tokens that came from the prefix cache.
    """

    job: Job
    seqs: list[Sequence]
    search: BeamSearch
    num_cached: int = 0
    _found: dict[int, Candidates] = field(default_factory=dict)

    def take(self, seq: Sequence, candidates: Candidates) -> bool:
        """What a step found for `seq`; whether all have theirs."""
        self._found[seq.index] = candidates
        return len(self._found) == len(self.seqs)

    def go_on(self, scheduler: Scheduler) -> list[tuple[int, int]]:
        """Choose the next tokens and hand out the sequences anew.

        Returns pairs of blocks to be copied, as `Scheduler.fork`; `search.running` is empty when
        the search is over.
        """
        parents = self.search.advance([self._found[seq.index] for seq in self.seqs])
        self._found.clear()
        self.num_cached = self.seqs[0].num_cached or 0
        before, free = self.seqs, set(range(self.job.params.beam_width))
        free -= {before[parent].index for parent in parents}
        seqs: list[Sequence] = []
        branches: dict[int, list[Sequence]] = {}
        for parent in parents:
            if parent in branches:
                branch = branch_of(before[parent], free.pop())
                branches[parent].append(branch)
                seqs.append(branch)
            else:
                branches[parent] = []
                seqs.append(before[parent])
        self.seqs = seqs
        for seq, text in zip(seqs, self.search.running, strict=True):
            seq.append(text.ids[-1])
        scheduler.remove([seq for number, seq in enumerate(before) if number not in branches])
        copies = []
        for parent, own in branches.items():
            copies += scheduler.fork(before[parent], own)
            scheduler.resume(before[parent])
        return copies

    def outputs(self) -> list[StepOutput]:
        """The answer: the job's choices, or a sign of life while the search goes on."""
        if self.search.running:
            return [StepOutput(0, 0, [], cached_tokens=self.num_cached)]
        best = enumerate(self.search.best(self.job.n))
        return [piece for index, text in best for piece in self._pieces(index, text)]

    def _pieces(self, index: int, text: Text) -> Iterator[StepOutput]:
        wants = self.job.params.logprobs is not None
        for at in range(0, len(text.ids), _PIECE):
            part = slice(at, at + _PIECE)
            is_last = part.stop >= len(text.ids)
            yield StepOutput(
                index,
                at,
                text.ids[part],
                text.logprobs[part] if wants else None,
                text.finish if is_last else None,
                text.stop_token if is_last else None,
                self.num_cached,
            )
