"""Forced tool calls: the answer's text holds them, and becomes OpenAI's `tool_calls`. Pure.

Such a text has two lines a call, the function's name and its arguments as JSON without line breaks
(`worker/text/structure.py` makes the grammar).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gateway.render import AnswerHead, ChatRenderer
from protocol.generation import Delta, Event, FinishReason
from trireme.service.ids import short_id


@dataclass(frozen=True, slots=True)
class CallPiece:
    """What a text adds to a call: its name when it begins, else more of its arguments."""

    index: int
    name: str | None
    arguments: str


class CallReader:
    """Reads one choice's calls from its text as it comes."""

    def __init__(self) -> None:
        self._index = 0
        self._name: list[str] | None = []

    def feed(self, text: str) -> list[CallPiece]:
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
        return pieces


class ToolCallRenderer(ChatRenderer):
    """/v1/chat/completions with forced calls.

    Args:
        named: a certain function was asked for; OpenAI ends such an answer with `stop`.
    """

    def __init__(self, head: AnswerHead, *, named: bool, **options: Any) -> None:
        super().__init__(head, **options)
        self._named = named
        self._readers = [CallReader() for _ in range(head.n * head.prompts)]

    def chunks(self, prompt: int, event: Event) -> list[bytes]:
        """As `Renderer.chunks`: a frame for each name and each piece of arguments."""
        if not isinstance(event, Delta):
            return super().chunks(prompt, event)
        self._note(prompt, event)
        index = prompt * self._head.n + event.index
        logprobs = self._logprobs(index, event) if event.logprobs else None
        choices = [
            self._call_piece(index, _delta_of(piece))
            for piece in self._readers[index].feed(event.text)
        ]
        if not choices and (logprobs or event.finish_reason):
            choices = [self._call_piece(index, {})]
        if choices:
            choices[-1]["logprobs"] = logprobs
            choices[-1]["finish_reason"] = self._reason(event.finish_reason)
        return [self._frame(choice) for choice in choices]

    def _call_piece(self, index: int, delta: Mapping[str, Any]) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _openings(self, index: int) -> list[dict[str, Any]]:
        return [self._call_piece(index, {"role": "assistant", "content": None})]

    def _message(self, text: str) -> dict[str, Any]:
        calls: list[dict[str, Any]] = []
        for piece in CallReader().feed(text):
            if piece.name is not None:
                function = {"name": piece.name, "arguments": ""}
                calls.append({"id": _call_id(), "type": "function", "function": function})
            else:
                calls[-1]["function"]["arguments"] += piece.arguments
        return {"role": "assistant", "content": None, "refusal": None, "tool_calls": calls}

    def _reason(self, reason: FinishReason | None) -> str | None:
        return "tool_calls" if reason == "stop" and not self._named else reason


def _call_id() -> str:
    return f"call_{short_id()}"


def _delta_of(piece: CallPiece) -> dict[str, Any]:
    call: dict[str, Any] = {"index": piece.index}
    if piece.name is not None:
        call |= {"id": _call_id(), "type": "function"}
        call["function"] = {"name": piece.name, "arguments": ""}
    else:
        call["function"] = {"arguments": piece.arguments}
    return {"tool_calls": [call]}
