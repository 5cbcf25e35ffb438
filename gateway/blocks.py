"""One answer as a row of blocks: reasoning, text and tool calls, in the order they came. Pure.

Chat has them side by side in one message. The Responses and the Messages API have one after the
other, each with its own beginning and end; what they have in common is here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from pydantic_core import to_json

from protocol.errors import TriremeError
from protocol.generation import Delta, Done, Event, FinishReason, Started, TokenLogprob
from trireme.service.ids import short_id

BlockKind: TypeAlias = Literal["reasoning", "text", "call"]
BlockStatus: TypeAlias = Literal["in_progress", "completed", "incomplete"]


@dataclass(slots=True)
class Block:
    """A part of an answer.

    Attributes:
        index: its place in the answer, from 0.
        name: of the function, for a call, whose pieces are its arguments.
        status: as the Responses API names it.
        id, call_id: random.
    """

    kind: BlockKind
    index: int
    name: str = ""
    pieces: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    status: BlockStatus = "in_progress"
    id: str = field(default_factory=short_id)
    call_id: str = field(default_factory=short_id)

    @property
    def text(self) -> str:
        return "".join(self.pieces)


@dataclass(frozen=True, slots=True)
class Opened:
    block: Block


@dataclass(frozen=True, slots=True)
class Grew:
    """A block has a piece more; `logprobs` are those of text, when they were asked for."""

    block: Block
    piece: str
    logprobs: Sequence[TokenLogprob] = ()


@dataclass(frozen=True, slots=True)
class Closed:
    block: Block


Step: TypeAlias = Opened | Grew | Closed


class Blocks:
    """The fold of one choice's deltas.

    Args:
        never_empty: an answer of nothing is one empty text.

    Attributes:
        row: the blocks so far; only the last one may be open.
        finish_reason, stop_reason: of the choice, when it ended.
    """

    def __init__(self, *, never_empty: bool = False) -> None:
        self._never_empty = never_empty
        self.row: list[Block] = []
        self.finish_reason: FinishReason | None = None
        self.stop_reason: int | str | None = None
        self._waiting: list[TokenLogprob] = []

    @property
    def has_calls(self) -> bool:
        return any(block.kind == "call" for block in self.row)

    def take(self, delta: Delta) -> Iterator[Step]:
        """What a delta changes, in order; it is done as the steps are taken."""
        if delta.finish_reason is not None:
            self.finish_reason, self.stop_reason = delta.finish_reason, delta.stop_reason
        logprobs = self._of_text(delta)
        if delta.reasoning:
            yield from self._go_on("reasoning", delta.reasoning)
        if delta.text or logprobs:
            yield from self._go_on("text", delta.text, logprobs)
        for piece in delta.calls or ():
            if piece.name is not None:
                yield from self._begin("call", piece.name)
            if piece.arguments:
                yield self._grow(piece.arguments)
        if delta.finish_reason is not None:
            if self._never_empty and not self.row:
                yield from self._begin("text")
            yield from self._close("incomplete" if delta.finish_reason == "length" else "completed")

    def _of_text(self, delta: Delta) -> list[TokenLogprob]:
        """The log probabilities that belong to the text now.

        Text that is held back comes after its tokens, so those wait until it is known what they
        are; tokens of reasoning and calls are not shown.
        """
        found = self._waiting + (delta.logprobs or [])
        self._waiting = []
        if delta.text:
            return found
        if delta.reasoning or delta.calls or not found:
            return []
        if delta.finish_reason is not None:
            return found if self._is_open("text") else []
        self._waiting = found
        return []

    def _is_open(self, kind: BlockKind) -> bool:
        return bool(self.row) and self.row[-1].kind == kind

    def _go_on(
        self, kind: BlockKind, piece: str, logprobs: Sequence[TokenLogprob] = ()
    ) -> Iterator[Step]:
        if not self._is_open(kind):
            yield from self._begin(kind)
        yield self._grow(piece, logprobs)

    def _begin(self, kind: BlockKind, name: str = "") -> Iterator[Step]:
        yield from self._close()
        self.row.append(Block(kind, len(self.row), name))
        yield Opened(self.row[-1])

    def _grow(self, piece: str, logprobs: Sequence[TokenLogprob] = ()) -> Grew:
        block = self.row[-1]
        block.pieces.append(piece)
        block.logprobs += logprobs
        return Grew(block, piece, logprobs)

    def _close(self, status: BlockStatus = "completed") -> Iterator[Step]:
        if self.row and self.row[-1].status == "in_progress":
            self.row[-1].status = status
            yield Closed(self.row[-1])


def encoded(value: object) -> bytes:
    """JSON, also of what clients and models wrote: integers of any size, infinity as null."""
    return to_json(value, inf_nan_mode="null")


class BlockRenderer(ABC):
    """An `AnswerRenderer` of `gateway/answer.py` for answers of one choice, in blocks."""

    def __init__(self, *, never_empty: bool = False) -> None:
        self._blocks = Blocks(never_empty=never_empty)
        self._opened = False
        self._prompt_tokens = 0
        self._done = Done(0, 0)

    def add(self, prompt: int, event: Event) -> None:
        """Take an event."""
        for _ in self._steps(event):
            pass

    def chunks(self, prompt: int, event: Event) -> list[bytes]:
        """The server-sent events of an event."""
        if isinstance(event, Started):
            # the next worker's, where the first had told nothing yet, opens nothing again
            opened, self._opened = self._opened, True
            self._prompt_tokens = event.prompt_tokens
            return [] if opened else self._opening()
        return [frame for step in self._steps(event) for frame in self._frames(step)]

    @abstractmethod
    def answer(self) -> bytes:
        """The whole answer as JSON, once all events were given."""

    @abstractmethod
    def end(self) -> bytes:
        """What follows the last event of a stream."""

    @abstractmethod
    def failure(self, error: TriremeError) -> bytes:
        """What ends a stream that failed."""

    @abstractmethod
    def _opening(self) -> list[bytes]:
        """What a stream begins with."""

    @abstractmethod
    def _frames(self, step: Step) -> list[bytes]:
        """What a stream shows of a step."""

    def _steps(self, event: Event) -> Iterator[Step]:
        if isinstance(event, Delta):
            yield from self._blocks.take(event)
        elif isinstance(event, Done):
            self._done = event
