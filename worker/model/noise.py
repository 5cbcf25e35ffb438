"""The noise that tokens are drawn with, and who needs none."""

from __future__ import annotations

from typing import Final

from worker.engine.protocol import SequenceParams

_MASK: Final = 2**64 - 1


def uniform(seed: int, index: int, position: int) -> float:
    """A number in [0, 1) from (seed, choice, position): two rounds of splitmix64."""
    state = (seed ^ (index * 0xD1342543DE82EF95)) & _MASK
    return (_splitmix(_splitmix(state) ^ position) >> 11) * 2.0**-53


def _splitmix(state: int) -> int:
    state = (state + 0x9E3779B97F4A7C15) & _MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    return state ^ (state >> 31)


def is_greedy(params: SequenceParams) -> bool:
    """Whether a row takes its most likely token, without noise."""
    return params.temperature < 1e-5 or params.top_p < 1e-8 or params.top_k == 1
