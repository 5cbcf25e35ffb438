"""Answers of the Messages API: one message, or its typed events. Pure."""

from __future__ import annotations

from typing import Any, Final

from pydantic_core import from_json

from gateway.blocks import Block, BlockRenderer, Closed, Grew, Opened, Step, encoded
from gateway.errors import anthropic_error_body
from protocol.anthropic import MessagesRequest
from protocol.errors import TriremeError
from protocol.framing import sse_named

_PING: Final = sse_named(b"ping", b'{"type":"ping"}')


class MessageRenderer(BlockRenderer):
    """POST /v1/messages.

    Args:
        message_id: `msg_…`.
        request_id: shown by errors.
    """

    def __init__(self, message_id: str, asked: MessagesRequest, request_id: str) -> None:
        super().__init__()
        self._id = message_id
        self._asked = asked
        self._request_id = request_id
        thinking = asked.thinking
        self._hides_thinking = thinking is not None and thinking.display == "omitted"

    def answer(self) -> bytes:
        content = [self._content(block, block.text) for block in self._blocks.row]
        return encoded(self._message(content, self._stop(), self._usage()))

    # ---- the stream -----------------------------------------------------------------------------

    def end(self) -> bytes:
        delta = _frame("message_delta", delta=self._stop(), usage=self._usage())
        return delta + _frame("message_stop")

    def failure(self, error: TriremeError) -> bytes:
        body = {**anthropic_error_body(error), "request_id": self._request_id}
        return sse_named(b"error", encoded(body))

    def _opening(self) -> list[bytes]:
        # how many of the prompt's tokens were cached is told at the end
        usage = _usage(self._prompt_tokens, 0, 0, 0)
        nothing_yet = {"stop_reason": None, "stop_sequence": None}
        return [_frame("message_start", message=self._message([], nothing_yet, usage)), _PING]

    def _frames(self, step: Step) -> list[bytes]:
        block = step.block
        match step:
            case Opened():
                content = self._content(block, "")
                return [_frame("content_block_start", index=block.index, content_block=content)]
            case Grew():
                if block.kind == "reasoning" and self._hides_thinking:
                    return []
                return [_frame("content_block_delta", index=block.index, delta=_delta(step))]
            case Closed():
                return [_frame("content_block_stop", index=block.index)]

    # ---- the object -----------------------------------------------------------------------------

    def _message(
        self, content: list[dict[str, Any]], stop: dict[str, Any], usage: dict[str, Any]
    ) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._asked.model,
            "content": content,
            **stop,
            "usage": usage,
        }

    def _content(self, block: Block, text: str) -> dict[str, Any]:
        """A block with so much of its text."""
        match block.kind:
            case "reasoning":
                shown = "" if self._hides_thinking else text
                return {"type": "thinking", "thinking": shown, "signature": ""}
            case "text":
                return {"type": "text", "text": text, "citations": None}
            case "call":
                call = {"id": f"toolu_{block.call_id}", "name": block.name}
                return {"type": "tool_use", **call, "input": _object(text)}

    def _stop(self) -> dict[str, Any]:
        """Why the answer ended, as Anthropic names it."""
        blocks = self._blocks
        sequence = blocks.stop_reason if blocks.stop_reason in self._asked.stop_sequences else None
        reason = "end_turn"
        if blocks.finish_reason == "length":
            reason = "max_tokens"
        elif sequence is not None:
            reason = "stop_sequence"
        elif blocks.has_calls:
            reason = "tool_use"
        return {"stop_reason": reason, "stop_sequence": sequence}

    def _usage(self) -> dict[str, Any]:
        done = self._done
        return _usage(
            done.prompt_tokens, done.cached_tokens, done.completion_tokens, done.reasoning_tokens
        )


def _usage(prompt: int, cached: int, completion: int, reasoning: int) -> dict[str, Any]:
    """Numbers of tokens; what was cached is not counted as input."""
    return {
        "input_tokens": prompt - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": completion,
        "output_tokens_details": {"thinking_tokens": reasoning},
        "service_tier": "standard",
    }


def _delta(step: Grew) -> dict[str, Any]:
    match step.block.kind:
        case "reasoning":
            return {"type": "thinking_delta", "thinking": step.piece}
        case "text":
            return {"type": "text_delta", "text": step.piece}
        case "call":
            return {"type": "input_json_delta", "partial_json": step.piece}


def _object(arguments: str) -> dict[str, Any]:
    """A call's arguments; of those that a limit cut, what is there."""
    try:
        found = from_json(arguments, allow_partial="trailing-strings")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _frame(kind: str, **fields: Any) -> bytes:
    return sse_named(kind.encode(), encoded({"type": kind, **fields}))
