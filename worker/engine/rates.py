"""What the engine measures of itself: tokens a second, and how much prefill a step bears."""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass
from typing import Final

_STEPS: Final = 31
_MOST_TOKENS: Final = 1e6


class Rate:
    """A running mean that forgets: work and time both decay with `halflife_s` of busy time."""

    def __init__(self, halflife_s: float = 5.0) -> None:
        self._halflife_s = halflife_s
        self._amount = 0.0
        self._seconds = 0.0

    def add(self, amount: float, seconds: float) -> None:
        """Count `amount` done in `seconds`; nothing done counts nothing."""
        if amount <= 0:
            return
        keep = math.exp2(-seconds / self._halflife_s)
        self._amount = self._amount * keep + amount
        self._seconds = self._seconds * keep + seconds

    @property
    def value(self) -> float:
        """Amount a second, 0 before anything was counted."""
        return self._amount / self._seconds if self._seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class PrefillBudget:
    """How much prefill a step takes beside its decodes, in tokens.

    Attributes:
        tokens: most in all. A prompt that has no more than this to compute is short.
        long: most of prompts that are not short.
    """

    tokens: int
    long: int


class PrefillPace:
    """How many prompt tokens a step may compute beside decodes.

    Long prompts take at most `share` of the time that the decodes take alone, so that a few of
    them less than double the time between two tokens of the others, on any machine. Short prompts
    may take `burst` times that time: each lengthens a single step for the others, and batches that
    fill soon are worth more to all, since a step with few decodes takes nearly as long as one with
    many (docs/performance.md).

    Args:
        share, burst: in times of a step without prefill.
        least: tokens that are always allowed, so that prompts come forward.
    """

    def __init__(self, share: float = 0.9, burst: float = 8.0, least: int = 16) -> None:
        self._share = share
        self._burst = burst
        self._least = least
        self._decodes_s: deque[float] = deque(maxlen=_STEPS)
        self._token_s: float | None = None

    def observe(self, prefill_tokens: int, num_decodes: int, seconds: float) -> None:
        """Take a step's duration."""
        if not prefill_tokens:
            self._decodes_s.append(seconds)
        elif not num_decodes:
            self._token_s = _towards(self._token_s, seconds / prefill_tokens)
        elif self._decodes_s:
            beside = seconds - self._decode_s
            if beside > 0:  # a step that was as short as one without them tells nothing
                self._token_s = _towards(self._token_s, beside / prefill_tokens)

    @property
    def _decode_s(self) -> float:
        # a median: long prompts come with work that slows the steps before their first chunk
        return statistics.median(self._decodes_s)

    def budget(self, num_waiting: int, num_decodes: int) -> PrefillBudget:
        """The next step's, if it has decodes.

        Where more sequences wait for their prefill than decode, it may take longer in proportion:
        those that wait count as much as those that are served.
        """
        if not self._decodes_s or not self._token_s:
            long = 4 * self._least
            return PrefillBudget(int(long * self._burst / self._share), long)
        tokens = max(1.0, num_waiting / max(1, num_decodes)) * self._decode_s / self._token_s
        tokens = min(tokens, _MOST_TOKENS)
        return PrefillBudget(
            tokens=max(self._least, int(self._burst * tokens)),
            long=max(self._least, int(self._share * tokens)),
        )


def _towards(mean: float | None, value: float) -> float:
    return value if mean is None else mean + 0.2 * (value - mean)
