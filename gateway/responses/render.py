"""Answers of the Responses API: one object, or its typed events. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gateway.blocks import Block, BlockRenderer, Closed, Grew, Opened, Step, encoded
from gateway.logprobs import chat_logprobs
from protocol.create_response import CreateResponse
from protocol.errors import TriremeError
from protocol.framing import sse_named
from protocol.generation import TokenLogprob

_ERROR_CODES: Final = {400: "invalid_prompt", 429: "rate_limit_exceeded"}


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """What is known of a response before it begins.

    Attributes:
        created_at: unix seconds.
    """

    id: str
    created_at: int
    asked: CreateResponse


class ResponseRenderer(BlockRenderer):
    """POST /v1/responses.

    Args:
        now: unix seconds, for the time of completion.
        finished: called with the whole answer when there is one.
    """

    def __init__(
        self,
        head: ResponseHead,
        *,
        now: Callable[[], float],
        finished: Callable[[dict[str, Any]], None],
    ) -> None:
        super().__init__(never_empty=True)
        self._head = head
        self._now = now
        self._finished = finished
        self._shows_logprobs = head.asked.shows_logprobs
        self._sent = 0

    def answer(self) -> bytes:
        return encoded(self._finish())

    # ---- the stream -----------------------------------------------------------------------------

    def end(self) -> bytes:
        response = self._finish()
        return self._frame(f"response.{response['status']}", response=response)

    def failure(self, error: TriremeError) -> bytes:
        code = _ERROR_CODES.get(error.spec.status, "server_error")
        failed = {
            **self._response("failed"),
            "output": [self._item(block) for block in self._blocks.row],
            "error": {"code": code, "message": error.message},
        }
        told = self._frame("error", code=error.code, message=error.message, param=error.param)
        return told + self._frame("response.failed", response=failed)

    def _opening(self) -> list[bytes]:
        begun = self._response("in_progress")
        return [
            self._frame("response.created", response=begun),
            self._frame("response.in_progress", response=begun),
        ]

    def _frames(self, step: Step) -> list[bytes]:
        block = step.block
        at = {"output_index": block.index}
        match step:
            case Opened():
                item = {**self._item(block), **_EMPTY[block.kind]}
                frames = [self._frame("response.output_item.added", **at, item=item)]
                if block.kind != "call":
                    part = self._part(block, empty=True)
                    frames.append(self._part_frame(block, "content_part.added", part=part))
                return frames
            case Grew():
                return [self._delta(step)]
            case Closed():
                frames = self._closing(block)
                item = self._item(block)
                return [*frames, self._frame("response.output_item.done", **at, item=item)]

    def _delta(self, step: Grew) -> bytes:
        match step.block.kind:
            case "reasoning":
                return self._part_frame(step.block, "reasoning_text.delta", delta=step.piece)
            case "text":
                shown = self._logprobs(step.logprobs)
                name = "output_text.delta"
                return self._part_frame(step.block, name, delta=step.piece, logprobs=shown)
            case "call":
                name = "function_call_arguments.delta"
                return self._item_frame(step.block, name, delta=step.piece)

    def _closing(self, block: Block) -> list[bytes]:
        if block.kind == "call":
            name, arguments = "function_call_arguments.done", block.text
            return [self._item_frame(block, name, name=block.name, arguments=arguments)]
        more = {"logprobs": self._logprobs(block.logprobs)} if block.kind == "text" else {}
        kind = "output_text" if block.kind == "text" else "reasoning_text"
        return [
            self._part_frame(block, f"{kind}.done", text=block.text, **more),
            self._part_frame(block, "content_part.done", part=self._part(block)),
        ]

    def _part_frame(self, block: Block, kind: str, **fields: Any) -> bytes:
        return self._item_frame(block, kind, content_index=0, **fields)

    def _item_frame(self, block: Block, kind: str, **fields: Any) -> bytes:
        place = {"item_id": _item_id(block), "output_index": block.index}
        return self._frame(f"response.{kind}", **place, **fields)

    def _frame(self, kind: str, **fields: Any) -> bytes:
        number, self._sent = self._sent, self._sent + 1
        return sse_named(
            kind.encode(), encoded({"type": kind, "sequence_number": number, **fields})
        )

    # ---- the object -----------------------------------------------------------------------------

    def _finish(self) -> dict[str, Any]:
        cut = self._blocks.finish_reason == "length"
        response = {
            **self._response("incomplete" if cut else "completed"),
            "completed_at": None if cut else int(self._now()),
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": [self._item(block) for block in self._blocks.row],
            "usage": self._usage(),
        }
        self._finished(response)
        return response

    def _response(self, status: str) -> dict[str, Any]:
        """The object without what is known at its end only."""
        head, asked = self._head, self._head.asked
        return {
            "id": head.id,
            "object": "response",
            "created_at": head.created_at,
            "completed_at": None,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "max_tool_calls": asked.max_tool_calls,
            "metadata": asked.metadata,
            "model": asked.model,
            "output": [],
            "parallel_tool_calls": asked.parallel_tool_calls,
            "previous_response_id": asked.previous_response_id,
            "prompt_cache_key": asked.prompt_cache_key,
            "reasoning": asked.reasoning.model_dump(include={"effort", "summary"}),
            "safety_identifier": asked.safety_identifier,
            "service_tier": "default",
            "store": asked.store,
            "temperature": asked.temperature,
            "text": {
                "format": asked.text.format or {"type": "text"},
                "verbosity": asked.text.verbosity,
            },
            "tool_choice": asked.tool_choice,
            "tools": [_tool(tool.for_chat["function"]) for tool in asked.tools],
            "top_logprobs": asked.top_logprobs,
            "top_p": asked.top_p,
            "truncation": asked.truncation,
            "usage": None,
            "user": asked.user,
        }

    def _item(self, block: Block) -> dict[str, Any]:
        """A block as an output item."""
        item: dict[str, Any] = {"id": _item_id(block), "status": block.status}
        match block.kind:
            case "reasoning":
                return {**item, "type": "reasoning", "summary": [], "content": [self._part(block)]}
            case "text":
                content = [self._part(block)]
                return {**item, "type": "message", "role": "assistant", "content": content}
            case "call":
                return {
                    **item,
                    "type": "function_call",
                    "call_id": f"call_{block.call_id}",
                    "name": block.name,
                    "arguments": block.text,
                }

    def _part(self, block: Block, *, empty: bool = False) -> dict[str, Any]:
        text = "" if empty else block.text
        if block.kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        logprobs = [] if empty else self._logprobs(block.logprobs)
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    def _logprobs(self, tokens: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
        if not self._shows_logprobs:
            return []
        shown: list[dict[str, Any]] = chat_logprobs(tokens, as_ids=False)["content"]
        return shown

    def _usage(self) -> dict[str, Any]:
        done = self._done
        return {
            "input_tokens": done.prompt_tokens,
            "input_tokens_details": {"cached_tokens": done.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": done.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": done.reasoning_tokens},
            "total_tokens": done.prompt_tokens + done.completion_tokens,
        }


_EMPTY: Final[Mapping[str, Mapping[str, Any]]] = {
    "reasoning": {"content": []},
    "text": {"content": []},
    "call": {"arguments": ""},
}
"""What an item has before its first piece."""


def _item_id(block: Block) -> str:
    prefix = {"reasoning": "rs", "text": "msg", "call": "fc"}[block.kind]
    return f"{prefix}_{block.id}"


def _tool(function: Mapping[str, Any]) -> dict[str, Any]:
    """As the answer shows it: with all that OpenAI's has."""
    return {"type": "function", "description": None, "parameters": None, "strict": None, **function}
