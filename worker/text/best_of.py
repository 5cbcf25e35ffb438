"""Keeps the best of several choices back until all have ended. Pure.

A choice's worth is the mean log probability of its tokens, as OpenAI's `best_of` has it ("the
highest log probability per token").
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from protocol.generation import Delta


class BestOf:
    """The deltas of one request's choices, until the best are known.

    Args:
        num_kept: how many choices are answered.
        shows_logprobs: whether their deltas keep the log probabilities that rank them.
    """

    def __init__(self, num_kept: int, *, shows_logprobs: bool) -> None:
        self._num_kept = num_kept
        self._shows_logprobs = shows_logprobs
        self._deltas: dict[int, list[Delta]] = {}

    def hold(self, deltas: Iterable[Delta]) -> None:
        """Take deltas; each id has its log probability."""
        for delta in deltas:
            self._deltas.setdefault(delta.index, []).append(delta)

    def best(self) -> list[Delta]:
        """The best choices' deltas, best first, numbered anew; equal ones in their own order."""
        ranked = sorted(self._deltas, key=lambda index: (-_mean(self._deltas[index]), index))
        return [
            replace(delta, index=rank, logprobs=delta.logprobs if self._shows_logprobs else None)
            for rank, index in enumerate(ranked[: self._num_kept])
            for delta in self._deltas[index]
        ]


def _mean(deltas: Iterable[Delta]) -> float:
    values = [one.logprob or 0.0 for delta in deltas for one in delta.logprobs or ()]
    return sum(values) / len(values)
