"""Prompt lookup: what follows a sequence's last tokens is foretold from where they stood before.

Summaries, edits of code and answers from documents repeat what is in the prompt (Saxena, "Prompt
Lookup Decoding", 2023). No clock, no torch, no I/O.
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
_MOST_LOOKS: Final = 64
"""How many places are looked at that may turn out to begin inside a token, which bounds it too."""
_SIZE: Final = array("i").itemsize


class Odds:
    """How likely a foretold token is right, if those before it were: an estimate that forgets."""

    def __init__(self) -> None:
        self._right = 0.0
        self._tried = 0.0

    @property
    def value(self) -> float:
        """Between 0 and 1; a third before anything is known."""
        return (self._right + 1) / (self._tried + 3)

    def learn(self, num_right: int, num_tried: int) -> None:
        """Take how many of some foretold tokens were right, the first ones."""
        self._right = 0.95 * self._right + num_right
        self._tried = 0.95 * self._tried + num_tried


@dataclass(frozen=True, slots=True)
class Found:
    """Where a sequence's last tokens stood before.

    Attributes:
        length: how many of them. period: how many tokens back.
        odds: that the next token is the one that followed there, and so on.
    """

    length: int
    period: int
    odds: float


class Lookup:
    """Looks one sequence's last tokens up among those before, and learns from what came of it."""

    def __init__(self) -> None:
        self._text = bytearray()
        self._odds = {length: Odds() for length in LENGTHS}
        self._last: Found | None = None

    def find(self, token_ids: SequenceOf[int]) -> Found | None:
        """The last place where the end of `token_ids`, which only ever grow, stood before."""
        num_known = len(self._text) // _SIZE
        self._learn(token_ids, num_known)
        self._text += array("i", token_ids[num_known:]).tobytes()
        self._last = None
        for length in LENGTHS:
            if period := _period(self._text, length):
                self._last = Found(length, period, self._odds[length].value)
                break
        return self._last

    def _learn(self, token_ids: SequenceOf[int], num_known: int) -> None:
        """Compare the tokens that have come since with those foretold, drafted or not."""
        num_new = len(token_ids) - num_known
        if self._last is None or not num_new:
            return
        period = self._last.period
        num_right = 0
        while num_right < num_new:
            at = num_known + num_right
            if token_ids[at] != token_ids[at - period]:
                break
            num_right += 1
        self._odds[self._last.length].learn(num_right, min(num_right + 1, num_new))


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
    for _ in range(_MOST_LOOKS):
        at = text.rfind(pattern, first, end)
        if at < 0:
            break
        if at % _SIZE == 0:
            return (len(text) - size - at) // _SIZE
        end = at + size - 1
    return 0
