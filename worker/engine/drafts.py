"""Which tokens the next step computes ahead of what is sampled (speculative decoding).

A step computes drafted tokens together with the last sampled one, samples behind each of them, and
keeps those that were drafted right. A token's noise comes from its position, so what is kept is
what would have been sampled without drafts, at any temperature. Pure.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence as SequenceOf
from typing import Final

from worker.engine.lookup import Lookup, continued
from worker.engine.sequence import Sequence

MOST_DRAFTED: Final = 16
"""Of one sequence in a step."""


def drafts(seqs: SequenceOf[Sequence], step_tokens: float) -> dict[int, list[int]]:
    """What to draft in the next step, by the `id` of the sequence.

    A further token is drafted where that makes the step's tokens cheaper: where the chance that it
    is kept is greater than what the step gives for each token's time without it.

    Args:
        seqs: those that decode. Some get none: beams, and those held to a grammar, whose state
            does not run ahead.
        step_tokens: what a step takes beside what each of its tokens takes, as a number of tokens.
    """
    found = [
        (seq, place)
        for seq in seqs
        if _most(seq) and (place := _lookup_of(seq).find(seq.token_ids)) is not None
    ]
    gained = computed = float(len(seqs))
    nums = [0] * len(found)
    likeliest = [(-place.odds, number) for number, (_seq, place) in enumerate(found)]
    heapq.heapify(likeliest)
    while likeliest:
        minus, number = heapq.heappop(likeliest)
        seq, place = found[number]
        if -minus * (step_tokens + computed) < gained:
            break
        gained, computed = gained - minus, computed + 1
        nums[number] += 1
        if nums[number] < _most(seq):
            heapq.heappush(likeliest, (minus * place.odds, number))
    return {
        id(seq): continued(seq.token_ids, place.period, num)
        for (seq, place), num in zip(found, nums, strict=True)
        if num
    }


def _most(seq: Sequence) -> int:
    """How many tokens may be drafted: the last one that fits is sampled behind them."""
    if seq.matcher is not None or seq.is_beam:
        return 0
    return max(0, min(MOST_DRAFTED, seq.params.max_tokens - seq.num_output - 1))


def _lookup_of(seq: Sequence) -> Lookup:
    if seq.lookup is None:
        seq.lookup = Lookup()
    return seq.lookup
