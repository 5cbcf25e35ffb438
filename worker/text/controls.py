"""Keeps control tokens that a user typed apart from those that a template writes. Pure.

Before a template is rendered, each special-token text in the messages is replaced by one
private-use character; the rendered prompt is cut at these characters afterwards.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_PRIVATE_USE = range(0xF0000, 0xFFFFE)


class TooManyMarks(ValueError):
    """So many private-use characters are in the messages that none is left to stand for a token."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a rendered prompt; `as_text`: special tokens in it are plain text."""

    text: str
    as_text: bool


@dataclass(frozen=True, slots=True)
class Disguise:
    """Which private-use character stands for which special-token text."""

    marks: Mapping[str, str]

    def of(self, value: Any) -> Any:
        """`value` with each special-token text in its strings replaced, in keys of dicts too."""
        if not self.marks:
            return value
        if isinstance(value, str):
            longest_first = sorted(self.marks, key=len, reverse=True)
            pattern = "|".join(map(re.escape, longest_first))
            return re.sub(pattern, lambda found: self.marks[found[0]], value)
        if isinstance(value, Mapping):
            return {self.of(key): self.of(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.of(inner) for inner in value]
        return value

    def pieces(self, rendered: str) -> list[Piece]:
        """The rendered prompt, cut at the marks; no piece is empty."""
        texts = {mark: text for text, mark in self.marks.items()}
        if not texts:
            return [Piece(rendered, False)] if rendered else []
        parts = re.split(f"([{''.join(texts)}])", rendered)
        return [Piece(texts.get(part, part), part in texts) for part in parts if part]

    def lifted(self, rendered: str) -> str:
        """The rendered prompt as a person would read it."""
        return "".join(piece.text for piece in self.pieces(rendered))


def disguise(value: Any, special_tokens: Sequence[str]) -> Disguise:
    """The marks that `value`'s strings need; none if no special token is typed in them.

    Raises:
        TooManyMarks: there is no mark that is not in `value` itself.
    """
    strings = list(_strings(value))
    typed = [token for token in special_tokens if token and any(token in s for s in strings)]
    if not typed:
        return Disguise({})
    taken = set().union(*strings)
    free = (chr(code) for code in _PRIVATE_USE if chr(code) not in taken)
    marks = dict(zip(typed, free, strict=False))
    if len(marks) < len(typed):
        raise TooManyMarks
    return Disguise(marks)


def _strings(value: Any) -> Any:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _strings(key)
            yield from _strings(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _strings(inner)


def surrogate_at(value: Any, path: str) -> str | None:
    """The path of the first string with a lone surrogate, such as `messages[0].content`."""
    if isinstance(value, str):
        return path if any("\ud800" <= char <= "\udfff" for char in value) else None
    items = (
        [(f"{path}.{key}", inner) for key, inner in value.items()]
        if isinstance(value, Mapping)
        else [(f"{path}[{i}]", inner) for i, inner in enumerate(value)]
        if isinstance(value, list | tuple)
        else []
    )
    return next((found for at, inner in items if (found := surrogate_at(inner, at))), None)
