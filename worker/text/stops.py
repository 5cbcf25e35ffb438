"""Stop strings over a text that arrives in pieces. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Match:
    """A stop string that was found; `text` is what may be shown before it (or with it)."""

    text: str
    stop: str


class StopMatcher:
    """Gives text out as soon as it cannot be part of a stop string any more.

    The stop whose text is complete first wins, whatever the order of the list and however the
    text was cut into pieces; of two that end at one place the longer wins.

    Args:
        stops: non-empty strings.
        include_stop: whether the stop string itself is shown.
    """

    def __init__(self, stops: Sequence[str], *, include_stop: bool = False) -> None:
        self._stops = tuple(dict.fromkeys(stops))
        self._include = include_stop
        self._first_chars = frozenset(stop[0] for stop in self._stops)
        self._held = ""

    def feed(self, piece: str) -> str | Match:
        """Text that is certain now, or the match that ends the text."""
        if not self._held and self._first_chars.isdisjoint(piece):
            return piece
        text = self._held + piece
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            end, start, stop = min(found)
            self._held = ""
            return Match(text[: end if self._include else start], stop)
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """The text held back, when nothing follows any more."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of `text` that is a proper prefix of `stop`."""
    at = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while at >= 0:
        if stop.startswith(text[at:]):
            return len(text) - at
        at = text.find(stop[0], at + 1)
    return 0
