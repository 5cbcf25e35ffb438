"""What the engine measures of itself: tokens a second, and how much prefill a step bears."""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass
from typing import Final, NamedTuple

_STEPS: Final = 31
_MOST_TOKENS: Final = 1_000_000


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

    It reckons with a time that every step takes and one for each of its tokens, decoded or of a
    prompt. Decodes of now may be more than there were in the last step without prefill, which may
    be long ago, so their time is not taken for that step's. Medians, as other work on the machine
    makes single steps many times as long.

    Args:
        share, burst: in times of a step without prefill.
        least: tokens that are always allowed, so that prompts come forward.
    """

    def __init__(self, share: float = 0.8, burst: float = 16.0, least: int = 16) -> None:
        self._share = share
        self._burst = burst
        self._least = least
        self._light: deque[_Step] = deque(maxlen=_STEPS)
        self._heavy: deque[_Step] = deque(maxlen=_STEPS)
        self._step_tokens: float | None = None

    def observe(self, prefill_tokens: int, num_decodes: int, seconds: float) -> None:
        """Take a step's duration."""
        step = _Step(prefill_tokens + num_decodes, seconds)
        if not prefill_tokens:
            self._light.append(step)
        elif not self._light or step.seconds > self._typical_light.seconds:
            self._heavy.append(step)  # one that was as short as one without tells nothing
        if self._light:
            light = self._typical_light
            token_s = self._token_s(light)
            self._step_tokens = (
                max(0.0, light.seconds / token_s - light.tokens) if token_s else None
            )

    @property
    def step_tokens(self) -> float | None:
        """What a step takes beside what each of its tokens takes, as a number of tokens; None
        while that is not known."""
        return self._step_tokens

    def budget(self, num_waiting: int, num_decodes: int) -> PrefillBudget:
        """The next step's, if it has decodes.

        Where more than half as many sequences wait for their prefill behind the first one as
        decode, it may take longer, by the square of their number: soon those that wait are more
        than those that would wait for them.
        """
        tokens = 4 * self._least / self._share
        if (step_tokens := self.step_tokens) is not None:
            # a step of many more tokens than those that were measured may be another matter
            most = 2 * max(step.tokens for step in self._heavy)
            tokens = min(step_tokens + num_decodes, most)
        tokens *= max(1.0, 2 * (num_waiting - 1) / max(1, num_decodes)) ** 2
        return PrefillBudget(
            tokens=self._bounded(self._burst * tokens), long=self._bounded(self._share * tokens)
        )

    @property
    def _typical_light(self) -> _Step:
        """A step without prefill. Medians also because long prompts come with work that slows the
        steps before their first chunk."""
        return _Step(
            statistics.median(step.tokens for step in self._light),
            statistics.median(step.seconds for step in self._light),
        )

    def _token_s(self, light: _Step) -> float:
        """What a token adds: the median over steps with prefill, each weighing as much as it has
        tokens more than one without."""
        slopes = sorted(
            ((step.seconds - light.seconds) / more, more)
            for step in self._heavy
            if (more := step.tokens - light.tokens) > 0 and step.seconds > light.seconds
        )
        half = sum(more for _slope, more in slopes) / 2
        for slope, more in slopes:
            half -= more
            if half <= 0:
                return slope
        return 0.0

    def _bounded(self, tokens: float) -> int:
        return int(min(max(self._least, tokens), _MOST_TOKENS))


class _Step(NamedTuple):
    tokens: float
    seconds: float
