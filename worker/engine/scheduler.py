"""Decides what the next step computes. Pure: no clock, no torch, no I/O.

Continuous batching: sequences join and leave at every step. One token budget a step is spent on
decodes first and then on prefills, cut into chunks (Sarathi-Serve), so a long prompt does not
stall those that stream. When blocks run out the youngest sequence gives its blocks back and is
recomputed later (vLLM's preemption by recomputation).
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from worker.engine.blocks import BlockPool
from worker.engine.fairness import FairQueue
from worker.engine.rates import PrefillBudget
from worker.engine.sequence import PENDING, Sequence

_MOST_LOOKS: Final = 16
"""How many of the queue a step looks up in the prefix cache in vain, which bounds its time."""
_MOST_PASSED: Final = 256
"""How many of the queue a step passes; beside those looked up they wait for a leader."""
MAX_SCORED_TOKENS: Final = 256
"""Prompt tokens of a step whose log probabilities are wanted, over all sequences: each takes a row
of logits as wide as the vocabulary, so those of a long prompt would fill the memory."""


@dataclass(frozen=True, slots=True)
class Scheduled:
    """Tokens of a sequence to compute in a step: `num_new` from position `start` on.

    Attributes:
        samples: whether they reach the sequence's last token, so that a new one is sampled.
        draft: tokens that may come next, the last ones of `num_new`. Behind each a token is
            sampled too; what follows a wrong one is of no worth.
    """

    seq: Sequence
    num_new: int
    start: int
    samples: bool
    draft: SequenceOf[int] = ()

    @classmethod
    def next_of(cls, seq: Sequence, num_new: int) -> Scheduled:
        """The next `num_new` tokens of `seq`."""
        return cls(seq, num_new, seq.num_computed, samples=num_new == seq.num_pending)

    @property
    def is_decode(self) -> bool:
        """Whether it goes on from one token, a sampled one, and what was drafted behind it."""
        return self.num_new == 1 + len(self.draft)

    def token_ids(self) -> list[int]:
        """The tokens to compute."""
        own = self.num_new - len(self.draft)
        return [*self.seq.token_ids[self.start : self.start + own], *self.draft]


class _Left:
    """What is left of a step's budget, in tokens.

    Args:
        tokens: most in all.
        prefill: the prefills' bounds, in force once `bound_prefill` is called.
    """

    def __init__(self, tokens: int, prefill: PrefillBudget | None) -> None:
        self.tokens = tokens
        self._long = tokens
        self._scored = MAX_SCORED_TOKENS
        self._prefill = prefill

    @property
    def is_spent_on_long(self) -> bool:
        """Whether no more of long prompts can be taken."""
        return self._long <= 0

    def bound_prefill(self) -> None:
        """The step has decodes: from here on the bounds count."""
        if self._prefill is not None:
            self.tokens = min(self.tokens, self._prefill.tokens)
            self._long = self._prefill.long

    def is_long(self, seq: Sequence) -> bool:
        """Whether `seq`, with what is found of its prompt, has a long prefill before it."""
        return self._prefill is not None and seq.num_pending > self._prefill.tokens

    def share_of(self, seq: Sequence) -> int:
        """How many tokens of `seq` the step can take."""
        share = min(seq.num_pending, self.tokens, self._long if seq.is_long else self.tokens)
        return min(share, self._scored) if seq.scores_prompt else share

    def spend(self, seq: Sequence, num_new: int) -> None:
        """Take tokens of `seq` into the step."""
        self.tokens -= num_new
        if seq.scores_prompt:
            self._scored -= num_new
        if seq.is_long and num_new > 1:
            self._long -= num_new


class Scheduler:
    """The waiting queue and the running batch.

    Args:
        pool: where blocks come from.
        max_running: most sequences in the batch.
        max_batch_tokens: most tokens computed in a step.
    """

    def __init__(self, pool: BlockPool, *, max_running: int, max_batch_tokens: int) -> None:
        self._pool = pool
        self._max_running = max_running
        self._max_batch_tokens = max_batch_tokens
        self._waiting: FairQueue[Sequence] = FairQueue()
        self.running: list[Sequence] = []
        self.preemptions = 0

    @property
    def has_work(self) -> bool:
        """Whether a step would have anything to do, now or after a release."""
        return bool(self.running) or len(self._waiting) > 0

    @property
    def num_waiting(self) -> int:
        """Sequences in the queue."""
        return len(self._waiting)

    @property
    def decodes(self) -> list[Sequence]:
        """Running sequences whose prefill is done."""
        return [seq for seq in self.running if seq.num_pending <= 1]

    @property
    def num_decodes(self) -> int:
        """How many `decodes` there are."""
        return len(self.decodes)

    @property
    def num_prefills(self) -> int:
        """Sequences that wait for their prefill or for the rest of it."""
        return self.num_waiting + len(self.running) - self.num_decodes

    @property
    def waiting_tokens(self) -> int:
        """Tokens to prefill of the sequences in the queue."""
        return sum(seq.num_pending for seq in self._waiting)

    def limit(self, max_running: int, max_batch_tokens: int) -> None:
        """Bound the steps from now on; what runs already goes on."""
        self._max_running, self._max_batch_tokens = max_running, max_batch_tokens

    def add(self, seq: Sequence) -> None:
        """Queue a sequence: fairly between tenants, a tenant's own by priority and arrival.

        One that was admitted before keeps its place.
        """
        self._waiting.add(seq.tenant, _order(seq), seq, keeps_place=seq.num_cached is not None)

    def remove(self, seqs: Iterable[Sequence]) -> None:
        """Take sequences out, wherever they are, and free their blocks."""
        gone = {id(seq) for seq in seqs}
        if not gone:
            return
        running = [seq for seq in self.running if id(seq) in gone]
        for seq in running:
            self._pool.release(seq)
        self.running = [seq for seq in self.running if id(seq) not in gone]
        if len(running) < len(gone):
            self._waiting.discard(gone)

    def expired(self, now_s: float) -> list[Sequence]:
        """Sequences whose deadline has passed, running or waiting."""
        everyone = [*self.running, *self._waiting]
        return [seq for seq in everyone if seq.deadline is not None and seq.deadline <= now_s]

    def schedule(
        self,
        prefill: PrefillBudget | None = None,
        drafts: Mapping[int, SequenceOf[int]] = MappingProxyType({}),
    ) -> list[Scheduled]:
        """The next step's work: decodes, then running prefills, then admissions.

        Args:
            prefill: bound on the prefills of a step that has decodes; None for none of their own.
            drafts: what to compute ahead of decodes where there is room, by `id` of the sequence.
        """
        batch: list[Scheduled] = []
        in_turn = _in_turn(self.running)
        left = _Left(self._max_batch_tokens, prefill)
        self._extend([seq for seq in in_turn if seq.num_pending == 1], left, batch)
        if batch:
            left.bound_prefill()
        self._extend([seq for seq in in_turn if seq.num_pending > 1], left, batch)
        self._admit(left, batch)
        while not batch and self._waiting and (parked := self._parked()):
            self._preempt(_in_turn(parked)[-1], batch)
            self._admit(left, batch)
        if drafts:
            self._draft(drafts, batch)
        return batch

    def fork(self, seq: Sequence, branches: SequenceOf[Sequence]) -> list[tuple[int, int]]:
        """Start copies of `seq`, sharing its blocks.

        Returns pairs of blocks: the content of the first is to be copied to the second before the
        next step. What has no room in the batch is queued, and computes again what it cannot find.
        """
        copies = []
        for branch in branches:
            has_room = len(self.running) < self._max_running
            if has_room and (copy := self._pool.fork(seq, branch)) is not None:
                copies.append(copy)
            if branch.block_table:
                self.running.append(branch)
            else:
                self.add(branch)
        return copies

    def preempt(self, seqs: Iterable[Sequence]) -> Sequence:
        """Take the blocks of the youngest of these running sequences, and queue it again."""
        victim = _in_turn(seqs)[-1]
        self._preempt(victim, [])
        return victim

    def restart(self, seqs: Iterable[Sequence]) -> None:
        """Compute sequences again from their first token, whatever became of the steps that they
        were in: what was stored of them is not to be found by others, and tokens that are still
        `PENDING` never come."""
        for seq in seqs:
            if seq.token_ids[-1] == PENDING:
                seq.token_ids.pop()
            if seq.block_table:
                self._pool.discard(seq)
                self.running.remove(seq)
                self.add(seq)

    def resume(self, seq: Sequence) -> None:
        """Go on with a parked sequence that has got a token; it may have lost its blocks."""
        if not seq.block_table:
            self.add(seq)

    def _parked(self) -> list[Sequence]:
        """Running sequences with nothing to compute: beams that wait for the others of their
        search. Where these find no room it is theirs."""
        return [seq for seq in self.running if seq.num_pending == 0]

    def _extend(self, seqs: SequenceOf[Sequence], left: _Left, batch: list[Scheduled]) -> None:
        """Give running sequences their next tokens, as far as the budget goes."""
        for seq in seqs:
            num_new = left.share_of(seq)
            if num_new == 0 or not seq.block_table or seq.is_full:
                continue  # nothing left, preempted in this very step, or ends with the last one
            if not self._make_room(seq, seq.num_computed + num_new, batch):
                continue
            self._pool.grow(seq, seq.num_computed + num_new)
            batch.append(Scheduled.next_of(seq, num_new))
            left.spend(seq, num_new)

    def _draft(self, drafts: Mapping[int, SequenceOf[int]], batch: list[Scheduled]) -> None:
        """Let decodes run ahead, in what the others leave of the step's tokens and of the blocks,
        so that nobody is kept out or preempted for drafts."""
        pool = self._pool
        spare = self._max_batch_tokens - sum(item.num_new for item in batch)
        needed = sum(max(1, pool.missing(seq, seq.num_tokens)) for seq in self.running)
        for number, item in enumerate(batch):
            draft = drafts.get(id(item.seq), ())[:spare]
            if not draft:
                continue
            end = item.start + item.num_new
            missing = pool.missing(item.seq, end + len(draft))
            if missing and (self._waiting or missing + needed > pool.num_free):
                draft = draft[: len(item.seq.block_table) * pool.block_size - end]
            pool.grow(item.seq, end + len(draft))
            spare -= len(draft)
            batch[number] = replace(item, num_new=item.num_new + len(draft), draft=draft)

    def advance(self, batch: SequenceOf[Scheduled]) -> None:
        """Count a step as computed, with `PENDING` for the tokens that it samples."""
        for item in batch:
            item.seq.num_computed += item.num_new - len(item.draft)
            self._pool.publish(item.seq)
            if item.samples and not item.seq.is_beam:
                item.seq.reserve()

    def resolve(self, item: Scheduled, token_id: int | None, more: SequenceOf[int] = ()) -> int:
        """Take the token of an entry of a counted step, None where none was sampled, and those
        behind it, whose keys and values are computed but for the last one's.

        What they end is still to be removed. Returns how many of `more` came before an end.
        """
        seq = item.seq
        before = seq.num_output - 1  # the token takes the place that was reserved
        if token_id is not None and not seq.is_beam:
            seq.resolve(token_id)
        num_kept = 0
        for token in more:
            if seq.finish is not None:
                break
            seq.num_computed += 1
            seq.append(token)
            num_kept += 1
        if num_kept:
            self._pool.publish(seq)
        if item.samples:
            num_tokens = 1 if seq.is_beam else seq.num_output - before
            self._waiting.charge_generated(seq.tenant, num_tokens)
        return num_kept

    def _admit(self, left: _Left, batch: list[Scheduled]) -> None:
        """Start sequences from the queue, in its order.

        Short prompts pass long ones whose budget is spent, and all pass a choice that waits for
        its leader. Nothing passes a sequence that waits for blocks.
        """
        passed: list[Sequence] = []
        looks, has_room = 0, True
        while left.tokens and len(self.running) < self._max_running:
            takes_long = not left.is_spent_on_long
            if not (len(self._waiting) if takes_long else self._waiting.num_ready):
                break
            if not has_room or looks == _MOST_LOOKS or len(passed) == _MOST_PASSED:
                break
            seq = self._waiting.pop(with_aside=takes_long)
            if _waits_for_leader(seq):
                passed.append(seq)
                continue
            num_found = seq.num_computed = self._pool.match_prefix(seq)
            seq.is_long = left.is_long(seq)
            num_new = left.share_of(seq)
            has_room = self._pool.can_grow(seq, seq.num_tokens)
            if not has_room or num_new == 0:
                self._pool.release(seq)
                passed.append(seq)
                looks += 1
                continue
            if seq.num_cached is None:
                seq.num_cached = num_found
                if seq.leader is None:  # the others find the prompt that it computes
                    self._waiting.charge_prompt(seq.tenant, seq.num_tokens)
            self._pool.grow(seq, seq.num_computed + num_new)
            self.running.append(seq)
            batch.append(Scheduled.next_of(seq, num_new))
            left.spend(seq, num_new)
        for seq in passed:
            is_known = seq.num_cached is not None
            self._waiting.put_back(
                seq.tenant, _order(seq), seq, keeps_place=is_known, aside=seq.is_long
            )

    def _make_room(self, seq: Sequence, num_tokens: int, batch: list[Scheduled]) -> bool:
        """Preempt the youngest until `seq` can grow; False when `seq` itself was the youngest."""
        while not self._pool.can_grow(seq, num_tokens):
            victim = _in_turn(self.running)[-1]
            self._preempt(victim, batch)
            if victim is seq:
                return False
        return True

    def _preempt(self, victim: Sequence, batch: list[Scheduled]) -> None:
        """Take the blocks of a running sequence; it is computed again later, if it must be."""
        is_parked = victim.num_pending == 0
        self._pool.release(victim)
        self.running.remove(victim)
        batch[:] = [item for item in batch if item.seq is not victim]
        if not is_parked:
            self.add(victim)
        self.preemptions += 1


def _age(seq: Sequence) -> tuple[int, int]:
    return (seq.arrival, seq.index)


def _order(seq: Sequence) -> tuple[int, int, int]:
    return (seq.priority, seq.arrival, seq.index)


def _in_turn(seqs: Iterable[Sequence]) -> list[Sequence]:
    """The oldest first; but in the places of a tenant its own come by priority."""
    by_age = sorted(seqs, key=_age)
    if not any(seq.priority for seq in by_age):
        return by_age
    own: dict[str, deque[Sequence]] = defaultdict(deque)
    for seq in sorted(by_age, key=_order):
        own[seq.tenant].append(seq)
    return [own[seq.tenant].popleft() for seq in by_age]


def _waits_for_leader(seq: Sequence) -> bool:
    """The other choices of a job start when the first one's prompt is in the prefix cache."""
    leader = seq.leader
    return (
        leader is not None
        and leader.finish is None
        and bool(leader.block_table)
        and leader.num_computed < leader.prompt_len
    )
