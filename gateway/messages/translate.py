"""Requests of the Messages API become requests of the native wire. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from types import MappingProxyType
from typing import Any, Final

from protocol.anthropic import (
    Block,
    CountTokensRequest,
    MessagesRequest,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from protocol.generation import GenerateRequest, SamplingParams, TokenizeRequest

FIELD_NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {"reasoning_effort": "output_config.effort", "stop": "stop_sequences"}
)
"""How this dialect calls what a worker's errors name."""


def generate_request(
    asked: MessagesRequest, *, request_id: str, deadline_s: float, cache_salt: str
) -> GenerateRequest:
    return GenerateRequest(
        request_id=request_id,
        **_prompt(asked),
        conv_stops=True,
        structure=asked.structure,
        parse=True,
        parallel_tool_calls=asked.parallel_tool_calls,
        sampling=SamplingParams(
            max_tokens=asked.max_tokens,
            temperature=asked.temperature,
            top_p=asked.top_p,
            top_k=asked.top_k or -1,
            stop=asked.stop_sequences,
        ),
        deadline_s=deadline_s,
        cache_salt=cache_salt,
        whole=not asked.stream,
    )


def tokenize_request(asked: CountTokensRequest) -> TokenizeRequest:
    """Counts the prompt that the same fields make in `generate_request`."""
    return TokenizeRequest(**_prompt(asked))


def _prompt(asked: CountTokensRequest) -> dict[str, Any]:
    """What a prompt is made of; a last turn of the assistant's is gone on with."""
    going_on = asked.messages[-1].role == "assistant"
    return {
        "model": asked.model,
        "messages": _turns(asked),
        "add_generation_prompt": not going_on,
        "continue_final_message": going_on,
        "tools": [dict(tool) for tool in asked.tool_use.shown] or None,
        "reasoning_effort": asked.output_config.effort,
        "thinking": asked.thinking.wanted if asked.thinking is not None else None,
    }


def _turns(asked: CountTokensRequest) -> list[dict[str, Any]]:
    """Chat messages; those of one role that follow each other are one, as Anthropic has it."""
    turns = [{"role": "system", "content": _text(asked.system)}] if asked.system else []
    for message in asked.messages:
        turns += _of_message(message.role, message.blocks)
    found: list[dict[str, Any]] = []
    for role, group in groupby(turns, key=itemgetter("role")):
        same = list(group)
        found += same if role == "tool" else [_joined(same)]
    return found


def _of_message(role: str, blocks: Iterable[Block]) -> Iterable[dict[str, Any]]:
    texts: list[TextBlock] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    results = 0
    for block in blocks:
        match block:
            case TextBlock():
                texts.append(block)
            case ThinkingBlock():
                thoughts.append(block.thinking)
            case ToolUseBlock():
                calls.append(_call(block))
            case ToolResultBlock():
                results += 1
                yield _result(block)
    if results and not texts:
        return
    turn: dict[str, Any] = {"role": role, "content": _text(texts)}
    if any(thoughts):
        turn["reasoning_content"] = "\n".join(thoughts)
    if calls:
        turn["tool_calls"] = calls
    yield turn


def _joined(turns: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Turns of one role as one, joined at once, as there may be very many."""
    whole = dict(turns[0])
    if len(turns) == 1:
        return whole
    for name in ("content", "reasoning_content"):
        if texts := [turn[name] for turn in turns if turn.get(name)]:
            whole[name] = "\n".join(texts)
    if calls := [call for turn in turns for call in turn.get("tool_calls", ())]:
        whole["tool_calls"] = calls
    return whole


def _call(block: ToolUseBlock) -> dict[str, Any]:
    arguments = json.dumps(block.input, ensure_ascii=False)
    function = {"name": block.name, "arguments": arguments}
    return {"id": block.id, "type": "function", "function": function}


def _result(block: ToolResultBlock) -> dict[str, Any]:
    """A template knows no failed results, so the text says it."""
    text = _text(block.content)
    content = f"Error: {text}" if block.is_error else text
    return {"role": "tool", "content": content, "tool_call_id": block.tool_use_id}


def _text(content: str | list[TextBlock]) -> str:
    """As one text; blocks are joined by a line break."""
    if isinstance(content, str):
        return content
    return "\n".join(block.text for block in content)
