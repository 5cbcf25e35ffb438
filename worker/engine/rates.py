"""Measured tokens a second, for the load that a worker reports."""

from __future__ import annotations

import math


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
