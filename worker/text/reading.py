"""What a completion's text says: the answer, what the model thought before, and tool calls.

A reader takes one choice's text as it comes, however it is cut, and gives its parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from protocol.generation import CallPiece


@dataclass(slots=True)
class Parts:
    """New pieces of each kind."""

    text: str = ""
    reasoning: str = ""
    calls: list[CallPiece] = field(default_factory=list)


class Reader(Protocol):
    """Reads one choice.

    Attributes:
        reasoning: whether what the model writes now is reasoning.
        full: whether the calls that were asked for are there, so that nothing more is wanted.
    """

    reasoning: bool
    full: bool

    def feed(self, text: str) -> Parts:
        """What is certain after this text."""

    def finish(self) -> Parts:
        """The rest, when nothing follows."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How the choices of a request are read.

    Attributes:
        make: a reader for one choice.
        hidden_ids: special tokens that are no text and mark nothing; None where the tokenizer
            leaves out all special tokens.
    """

    make: Callable[[], Reader]
    hidden_ids: frozenset[int] | None = None


class AnswerFormat(Protocol):
    """How one model marks reasoning and calls.

    Attributes:
        tool_format, reasoning_format: their names in `worker/text/formats.py`.
        described: what determines how answers are read: goes into the model's digest.
    """

    tool_format: str
    reasoning_format: str
    described: str

    def reading(
        self, prompt: str, tools: Sequence[Mapping[str, Any]] | None, *, parallel: bool
    ) -> Reading | None:
        """How the answers to a prompt are read; None where all is the answer.

        Args:
            prompt: as rendered, for what the template wrote of the answer already.
            tools: the functions that may be called; none leaves calls unread.
            parallel: whether several calls are wanted.
        """


class ForcedCalls:
    """Calls that a grammar forced: two lines each, the function's name and its arguments.

    The arguments are JSON without line breaks (`worker/text/structure.py` makes the grammar).
    """

    reasoning = False
    full = False

    def __init__(self) -> None:
        self._index = 0
        self._name: list[str] | None = []

    def feed(self, text: str) -> Parts:
        """The pieces that this text completes; a name comes whole."""
        pieces: list[CallPiece] = []
        lines = text.split("\n")
        for number, line in enumerate(lines):
            ended = number < len(lines) - 1
            if self._name is None:
                if line:
                    pieces.append(CallPiece(self._index, None, line))
                if ended:
                    self._index, self._name = self._index + 1, []
            else:
                self._name.append(line)
                if ended:
                    pieces.append(CallPiece(self._index, "".join(self._name), ""))
                    self._name = None
        return Parts(calls=pieces)

    def finish(self) -> Parts:
        return Parts()


FORCED_CALLS = Reading(ForcedCalls)
