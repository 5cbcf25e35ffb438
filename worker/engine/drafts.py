"""Which tokens the next step computes ahead of what is sampled (speculative decoding).

A step computes drafted tokens together with the last sampled one, samples behind each of them, and
keeps those that were drafted right. A token's noise comes from its position, so what is kept is
what would have been sampled without drafts, at any temperature. No clock, no torch, no I/O.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence as SequenceOf
from typing import Final

from worker.engine.lookup import Found, Lookup, continued
from worker.engine.sequence import Sequence

MOST_DRAFTED: Final = 16
"""Of one sequence in a step."""
MOST_SLOWED: Final = 1.5
"""How many times as long a sequence may wait for its tokens because of the drafts of others."""
_WORTH: Final = 1.25
"""How many times its time a draft must be worth: chances are guessed, and the tokens of steps with
few take longer each than those of a prompt."""


def drafts(seqs: SequenceOf[Sequence], step_tokens: float) -> dict[int, list[int]]:
    """What to draft in the next step, by the `id` of the sequence.

    A further token is drafted where that makes the step's tokens cheaper: where the chance that it
    is kept is well above what the step gives for each token's time without it.

    Args:
        seqs: those that decode. Some get none: beams, and those held to a grammar, whose state
            does not run ahead.
        step_tokens: what a step takes beside what each of its tokens takes, as a number of tokens.
    """
    places = [
        (seq, place)
        for seq in seqs
        if _most(seq) and (place := _lookup_of(seq).find(seq.token_ids)) is not None
    ]
    paying = _paying(places, len(seqs), step_tokens)
    gains = [1.0] * len(places)
    for number, chance in paying:
        gains[number] += chance
    least_gain = min(gains) if len(gains) == len(seqs) > 0 else 1.0
    without = step_tokens + len(seqs)
    if without + len(paying) > MOST_SLOWED * least_gain * without:
        del paying[int((MOST_SLOWED - 1) * without) :]
    nums = Counter(number for number, _chance in paying)
    return {
        id(seq): continued(seq.token_ids, place.period, nums[number])
        for number, (seq, place) in enumerate(places)
        if nums[number]
    }


def _paying(
    places: SequenceOf[tuple[Sequence, Found]], num_seqs: int, step_tokens: float
) -> list[tuple[int, float]]:
    """The drafted tokens that make a step's tokens cheaper, the likeliest first: the number of
    their place, and the chance that they are kept."""
    found: list[tuple[int, float]] = []
    expected = float(num_seqs)
    nums = [0] * len(places)
    likeliest = [(-place.odds, number) for number, (_seq, place) in enumerate(places)]
    heapq.heapify(likeliest)
    while likeliest:
        minus, number = heapq.heappop(likeliest)
        if -minus * (step_tokens + num_seqs + len(found)) < _WORTH * expected:
            break
        found.append((number, -minus))
        expected -= minus
        nums[number] += 1
        seq, place = places[number]
        if nums[number] < _most(seq):
            heapq.heappush(likeliest, (minus * place.odds, number))
    return found


def _most(seq: Sequence) -> int:
    """How many tokens may be drafted: the last one that fits is sampled behind them."""
    if seq.matcher is not None or seq.is_beam:
        return 0
    return max(0, min(MOST_DRAFTED, seq.params.max_tokens - seq.num_output - 1))


def _lookup_of(seq: Sequence) -> Lookup:
    if seq.lookup is None:
        seq.lookup = Lookup()
    return seq.lookup
