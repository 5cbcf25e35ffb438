"""One sequence of tokens in the paged engine: a prompt and what has been generated from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field, replace
from typing import Final

from worker.engine.grammar import Matcher
from worker.engine.lookup import Lookup
from worker.engine.protocol import Finish, Job, RawLogprob, SequenceParams

PENDING: Final = -1
"""Stands for a token that a step under way samples."""


@dataclass(slots=True, eq=False)
class Sequence:
    """State of one choice of a job.

    Attributes:
        token_ids: prompt and generated tokens; the last may be `PENDING`.
        num_computed: how many leading tokens have their keys and values in the pool.
        block_table: ids of the blocks that hold them, in order.
        num_hashed: how many leading blocks are published in the prefix cache.
        block_hashes: hashes of the full blocks of `token_ids`, as far as computed.
        num_cached: prompt tokens that came from the prefix cache at the first admission.
        is_long: whether its prefill is a long one beside decodes (`PrefillPace`).
        arrival: order of arrival; `deadline` is on the engine's clock, in seconds.
        leader: the first choice of the same job; the others wait for its prefill to share it.
        prompt_logprobs: gathered during the prefill, when asked for.
        matcher: holds the output to a grammar.
        stop_token: the one that ended it. num_told: how much of the output was given out.
        output_counts: how often each generated token occurs, for the penalties.
        lookup: where its drafts come from, once it has any.
    """

    job_id: str
    index: int
    params: SequenceParams
    token_ids: list[int]
    prompt_len: int
    priority: int
    arrival: int
    deadline: float | None
    cache_salt: str
    leader: Sequence | None
    tenant: str = ""
    num_computed: int = 0
    block_table: list[int] = field(default_factory=list)
    num_hashed: int = 0
    block_hashes: list[bytes] = field(default_factory=list)
    num_cached: int | None = None
    is_long: bool = False
    matcher: Matcher | None = None
    output_counts: Counter[int] = field(default_factory=Counter)
    prompt_logprobs: list[RawLogprob] = field(default_factory=list)
    finish: Finish | None = None
    stop_token: int | None = None
    num_told: int = 0
    lookup: Lookup | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and output."""
        return len(self.token_ids)

    @property
    def num_output(self) -> int:
        """Tokens generated so far."""
        return len(self.token_ids) - self.prompt_len

    @property
    def num_pending(self) -> int:
        """Tokens whose keys and values are not yet computed; 1 in the decode phase."""
        return len(self.token_ids) - self.num_computed

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether the prefill must yield logits of every prompt position."""
        return self.params.prompt_logprobs is not None and self.index == 0

    @property
    def scores_prompt(self) -> bool:
        """Whether logits of every prompt position are still to come."""
        return self.wants_prompt_logprobs and len(self.prompt_logprobs) < self.prompt_len

    @property
    def is_beam(self) -> bool:
        """Whether a beam search chooses its tokens, among those of several sequences."""
        return self.params.beam_width > 0

    @property
    def reads_tokens(self) -> bool:
        """Whether its next step needs its last token on the host, and cannot go ahead of it."""
        params = self.params
        return bool(
            params.repetition_penalty != 1.0
            or params.presence_penalty
            or params.frequency_penalty
            or self.wants_prompt_logprobs
            or self.matcher
            or self.is_beam
        )

    @property
    def is_full(self) -> bool:
        """Whether no further token fits, be its last one known or not."""
        return self.num_output >= self.params.max_tokens

    def append(self, token_id: int) -> None:
        """Take a newly sampled token; decides whether the sequence is finished."""
        self.reserve()
        self.resolve(token_id)

    def reserve(self) -> None:
        """Go on as if the next token had been sampled."""
        self.token_ids.append(PENDING)

    def resolve(self, token_id: int) -> None:
        """Take the token that `reserve` made room for, and what its grammar makes of it; decides
        whether the sequence is finished.
        """
        self._take(token_id)
        if self.matcher is None or self.stop_token is not None:
            return
        if self.matcher.ends(token_id):
            self.finish, self.stop_token = "stop", token_id
            return
        for forced in self.matcher.take(token_id, fast=self.params.logprobs is None):
            if self.finish is not None:
                return  # cut by the limit, with more to come
            self.reserve()
            self._take(forced)
        if self.matcher.is_over:
            self.finish = "stop"

    def _take(self, token_id: int) -> None:
        self.token_ids[-1] = token_id
        self.output_counts[token_id] += 1
        past_minimum = self.num_output >= self.params.min_tokens
        if past_minimum and token_id in self.params.stop_token_ids:
            self.finish, self.stop_token = "stop", token_id
        elif self.num_output >= self.params.max_tokens:
            self.finish = "length"


def branch_of(seq: Sequence, index: int) -> Sequence:
    """Another sequence with the same tokens, of the same job; it holds no blocks."""
    return replace(
        seq,
        index=index,
        token_ids=list(seq.token_ids),
        output_counts=Counter(seq.output_counts),
        leader=None,
        num_computed=0,
        block_table=[],
        num_hashed=0,
        block_hashes=[],
        lookup=None,
    )


def ahead_of(seq: Sequence, tokens: SequenceOf[int]) -> Sequence:
    """What `seq` is for a sampler once it has generated `tokens` too."""
    ahead = branch_of(seq, seq.index)
    ahead.token_ids.extend(tokens)
    ahead.output_counts.update(tokens)
    return ahead


def sequences_of(
    job: Job, arrival: int, now_s: float, matcher: Matcher | None = None
) -> list[Sequence]:
    """The sequences of a job, the first is the others' leader; of a beam search the first."""
    made: list[Sequence] = []
    for index, ids in job.choices[: 1 if job.params.beam_width else None]:
        made.append(
            Sequence(
                job_id=job.job_id,
                index=index,
                params=job.params,
                token_ids=[*job.prompt_ids, *ids],
                prompt_len=len(job.prompt_ids),
                priority=job.priority,
                arrival=arrival,
                deadline=None if job.deadline_s is None else now_s + job.deadline_s,
                cache_salt=job.cache_salt,
                tenant=job.tenant,
                leader=made[0] if made else None,
                matcher=None if matcher is None else matcher.behind(ids),
                output_counts=Counter(ids),
                num_told=len(ids),
            )
        )
    return made
