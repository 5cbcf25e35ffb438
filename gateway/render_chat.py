"""Chat answers and their chunks: roles, contents, reasoning, tool calls. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson

from gateway.logprobs import chat_logprobs
from gateway.render import AnswerHead, Renderer
from protocol.generation import CallPiece, Delta, Event, FinishReason, Prompt
from trireme.service.ids import short_id


class ChatRenderer(Renderer):
    """/v1/chat/completions.

    Args:
        lead: text that stands before every choice's own (`echo`).
        forced: the answer is tool calls and nothing else.
        named: a certain function was asked for; OpenAI ends such an answer with `stop`.
    """

    object_name = "chat.completion"
    chunk_name = "chat.completion.chunk"

    def __init__(
        self,
        head: AnswerHead,
        *,
        lead: str = "",
        forced: bool = False,
        named: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(head, **options)
        self._lead = lead
        self._forced = forced
        self._named = named
        self._calling: set[int] = set()

    def answer(self) -> bytes:
        choices = []
        for index, choice in enumerate(self._choices):
            text = self._lead + choice.text
            message: dict[str, Any] = {
                "role": "assistant",
                "content": None if not text and (choice.calls or self._forced) else text,
                "refusal": None,
            }
            if choice.reasoning:
                message["reasoning_content"] = "".join(choice.reasoning)
            if choice.calls or self._forced:
                message["tool_calls"] = _whole(choice.calls)
            choices.append(
                {
                    "index": index,
                    "message": message,
                    "logprobs": choice.all_logprobs,
                    "finish_reason": self._reason(index, choice.finish_reason),
                }
            )
        fields = {**self._base(self.object_name), "choices": choices, "usage": self.usage}
        if self._shows_prompt_logprobs:
            fields["prompt_logprobs"] = self._choices[0].prompt_logprobs
        return orjson.dumps(fields)

    def _note(self, prompt: int, event: Event) -> None:
        super()._note(prompt, event)
        if isinstance(event, Delta) and event.calls:
            self._calling.add(prompt * self._head.n + event.index)

    def _reason(self, index: int, reason: FinishReason | None) -> str | None:
        """As OpenAI names it."""
        called = index in self._calling and not self._named
        return "tool_calls" if called and reason == "stop" else reason

    def _openings(self, index: int) -> list[dict[str, Any]]:
        delta = {"role": "assistant", "content": None} if self._forced else {"role": "assistant"}
        opening = [_choice(index, delta)]
        return [*opening, self._piece(index, self._lead, None, None)] if self._lead else opening

    def _echo_pieces(self, index: int, event: Prompt) -> list[tuple[str, dict[str, Any] | None]]:
        return []

    def _pieces(
        self, index: int, event: Delta, logprobs: dict[str, Any] | None
    ) -> list[dict[str, Any]]:
        deltas: list[dict[str, Any]] = []
        if event.reasoning:
            deltas.append({"reasoning_content": event.reasoning})
        if event.text or (logprobs and not (deltas or event.calls or self._forced)):
            deltas.append({"content": event.text})
        deltas += [_of_call(piece) for piece in event.calls or ()]
        if not deltas and (logprobs or event.finish_reason):
            deltas.append({})
        choices = [_choice(index, delta) for delta in deltas]
        if choices:
            choices[-1]["logprobs"] = logprobs
            choices[-1]["finish_reason"] = self._reason(index, event.finish_reason)
        return choices

    def _piece(
        self,
        index: int,
        text: str,
        logprobs: dict[str, Any] | None,
        finish_reason: FinishReason | None,
    ) -> dict[str, Any]:
        delta = {"content": text} if text or logprobs else {}
        return {**_choice(index, delta), "logprobs": logprobs, "finish_reason": finish_reason}

    def _logprobs(self, index: int, event: Delta) -> dict[str, Any]:
        return chat_logprobs(event.logprobs or [], as_ids=self._as_ids)


def _choice(index: int, delta: dict[str, Any]) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


def _of_call(piece: CallPiece) -> dict[str, Any]:
    call: dict[str, Any] = {"index": piece.index}
    if piece.name is not None:
        call |= {"id": _call_id(), "type": "function"}
        call["function"] = {"name": piece.name, "arguments": piece.arguments}
    else:
        call["function"] = {"arguments": piece.arguments}
    return {"tool_calls": [call]}


def _whole(pieces: Iterable[CallPiece]) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []
    for piece in pieces:
        if piece.name is not None:
            function = {"name": piece.name, "arguments": piece.arguments}
            calls.append({"id": _call_id(), "type": "function", "function": function})
        else:
            calls[-1]["function"]["arguments"] += piece.arguments
    return calls


def _call_id() -> str:
    return f"call_{short_id()}"
