"""Prompt lookup: what follows a sequence's last tokens is drafted from where they stood before.

Summaries, edits of code and answers from documents repeat what is in the prompt (Saxena, "Prompt
Lookup Decoding", 2023). Pure.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Final

LENGTHS: Final = (4, 3, 2)
"""How many last tokens are looked for; the longest that are found count."""
_REACH: Final = 2**15
"""How many tokens back are looked at, which bounds the time."""
_SIZE: Final = array("i").itemsize


class Odds:
    """How likely a drafted token is right, if those before it were: an estimate that forgets."""

    def __init__(self) -> None:
        self._right = 0.0
        self._tried = 0.0

    @property
    def value(self) -> float:
        """Between 0 and 1; one half before anything is known."""
        return (self._right + 1) / (self._tried + 2)

    def pass_by(self) -> None:
        """Forget a little, so that a draft is tried again after a while."""
        self._right *= 0.98
        self._tried *= 0.98

    def learn(self, num_drafted: int, num_right: int) -> None:
        """Take what became of a draft: those behind the first wrong token tell nothing."""
        self._right = 0.9 * self._right + num_right
        self._tried = 0.9 * self._tried + min(num_drafted, num_right + 1)


@dataclass(frozen=True, slots=True)
class Found:
    """Where a sequence's last tokens stood before.

    Attributes:
        length: how many of them. period: how many tokens back.
        odds: of tokens that are drafted from there.
    """

    length: int
    period: int
    odds: float


class Lookup:
    """Looks one sequence's last tokens up among those before."""

    def __init__(self) -> None:
        self._text = bytearray()
        self._odds = {length: Odds() for length in LENGTHS}
        self._last: Found | None = None

    def find(self, token_ids: SequenceOf[int]) -> Found | None:
        """The last place where the end of `token_ids`, which only ever grow, stood before."""
        text, num_known = self._text, len(self._text) // _SIZE
        text += array("i", token_ids[num_known:]).tobytes()
        self._last = None
        for length in LENGTHS:
            period = _period(text, length)
            if period:
                odds = self._odds[length]
                odds.pass_by()
                self._last = Found(length, period, odds.value)
                break
        return self._last

    def learn(self, num_drafted: int, num_right: int) -> None:
        """Take what became of a draft from the place found last."""
        if self._last is not None:
            self._odds[self._last.length].learn(num_drafted, num_right)


def continued(token_ids: SequenceOf[int], period: int, num: int) -> list[int]:
    """`num` tokens that follow `token_ids` when they go on as they did `period` tokens before."""
    start = len(token_ids) - period
    again = token_ids[start : start + num]
    return [again[at % period] for at in range(num)]


def _period(text: bytearray, length: int) -> int:
    """How many tokens before its end the last `length` tokens of `text` stand once more; 0 where
    they do not."""
    size, first = length * _SIZE, max(0, len(text) - _REACH * _SIZE)
    if len(text) <= size:
        return 0
    pattern, end = text[-size:], len(text) - _SIZE
    while (at := text.rfind(pattern, first, end)) >= 0:
        if at % _SIZE == 0:
            return (len(text) - size - at) // _SIZE
        end = at + size - 1
    return 0
