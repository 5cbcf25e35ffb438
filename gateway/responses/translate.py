"""Requests of the Responses API become requests of the native wire. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from protocol.create_response import CreateResponse
from protocol.errors import TriremeError, quoted
from protocol.generation import GenerateRequest, SamplingParams
from protocol.response_items import (
    FunctionCallItem,
    FunctionCallOutputItem,
    Item,
    ItemReference,
    MessageItem,
    ReasoningItem,
    TextPart,
    text_of,
)
from trireme.service.ids import short_id

FIELD_NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "messages": "input",
        "max_tokens": "max_output_tokens",
        "reasoning_effort": "reasoning.effort",
        "logprobs": "top_logprobs",
    }
)
"""How this dialect calls what a worker's errors name."""


def generate_request(
    asked: CreateResponse,
    conversation: Sequence[Item],
    *,
    request_id: str,
    deadline_s: float,
    cache_salt: str,
) -> GenerateRequest:
    """The request for an answer to a conversation, which ends with the request's own items.

    Raises:
        TriremeError: a result is of no call, or no message says "json" where that is asked for.
    """
    turns = _turns(conversation, asked.instructions)
    _check_json_is_named(asked, turns)
    return GenerateRequest(
        request_id=request_id,
        model=asked.model,
        messages=turns,
        conv_stops=True,
        tools=[dict(tool) for tool in asked.tool_use.shown] or None,
        structure=asked.structure,
        parse=True,
        parallel_tool_calls=asked.parallel_tool_calls,
        reasoning_effort=asked.reasoning.effort,
        sampling=SamplingParams(
            max_tokens=asked.max_output_tokens,
            temperature=asked.temperature,
            top_p=asked.top_p,
            logprobs=asked.top_logprobs if asked.shows_logprobs else None,
        ),
        deadline_s=deadline_s,
        cache_salt=cache_salt,
        whole=not asked.stream,
    )


def resolved(items: Iterable[Item], find: Callable[[str], Item | None]) -> list[Item]:
    """The items, with those that are referred to in place of references.

    Raises:
        TriremeError: an item that is referred to is not stored.
    """
    found: list[Item] = []
    for number, item in enumerate(items):
        if isinstance(item, ItemReference):
            target = find(item.id)
            if target is None:
                message = f"Item with id '{quoted(item.id)}' not found."
                raise TriremeError("response_not_found", message, param=f"input[{number}].id")
            item = target
        found.append(item)
    return found


def listed(item: Item) -> dict[str, Any]:
    """An input item as GET …/input_items shows it: with an id, a status and parts."""
    fields = item.model_dump(exclude_none=True)
    fields["id"] = fields.get("id") or f"{_PREFIXES[item.type]}_{short_id()}"
    if isinstance(item, MessageItem):
        parts = item.content
        if isinstance(parts, str):
            said = item.role == "assistant"
            parts = [TextPart(type="output_text" if said else "input_text", text=parts)]
        fields["content"] = [_part(part) for part in parts]
    if not isinstance(item, ReasoningItem):
        fields.setdefault("status", "completed")
    return fields


_PREFIXES: Final[Mapping[str, str]] = MappingProxyType(
    {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}
)


def _part(part: TextPart) -> dict[str, Any]:
    fields = part.model_dump(exclude_none=True)
    if part.type == "output_text":
        fields = {"annotations": [], "logprobs": [], **fields}
    return fields


def _turns(items: Iterable[Item], instructions: str | None) -> list[dict[str, Any]]:
    """Chat messages: an answer's reasoning, text and calls are one; instructions come first."""
    turns: list[dict[str, Any]] = []
    system = [instructions] if instructions else []
    if system:
        turns.append({"role": "system", "content": ""})
    called: set[str] = set()
    for item in items:
        match item:
            case MessageItem(role="assistant"):
                _add_line(_answer(turns), "content", text_of(item.content))
            case MessageItem(role="system" | "developer") if len(turns) == 1 and system:
                # many templates take one system message, at the start
                system.append(text_of(item.content))
            case MessageItem():
                turns.append({"role": item.role, "content": text_of(item.content)})
            case ReasoningItem():
                thought = "\n".join(one.text for one in item.content)
                if thought:
                    _add_line(_answer(turns), "reasoning_content", thought)
            case FunctionCallItem():
                function = {"name": item.name, "arguments": item.arguments}
                call = {"id": item.call_id, "type": "function", "function": function}
                _answer(turns).setdefault("tool_calls", []).append(call)
                called.add(item.call_id)
            case FunctionCallOutputItem():
                if item.call_id not in called:
                    shown = quoted(item.call_id)
                    message = f"No tool call found for function call output with call_id {shown}."
                    raise TriremeError("invalid_request", message, param="input")
                turns.append(_result(item))
    if system:
        turns[0]["content"] = "\n\n".join(system)
    return [{name: _joined(value) for name, value in turn.items()} for turn in turns]


def _answer(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """The assistant's turn that is going on, or a new one."""
    if not turns or turns[-1]["role"] != "assistant":
        turns.append({"role": "assistant", "content": _Lines()})
    return turns[-1]


class _Lines(list[str]):
    """Lines of a text to be; joined once, as a turn may have very many."""


def _add_line(turn: dict[str, Any], field: str, text: str) -> None:
    turn.setdefault(field, _Lines()).append(text)


def _joined(value: Any) -> Any:
    return "\n".join(filter(None, value)) if isinstance(value, _Lines) else value


def _result(item: FunctionCallOutputItem) -> dict[str, Any]:
    turn = {"role": "tool", "content": text_of(item.output), "tool_call_id": item.call_id}
    return turn if item.name is None else {**turn, "name": item.name}


def _check_json_is_named(asked: CreateResponse, turns: Iterable[Mapping[str, Any]]) -> None:
    """OpenAI's own rule, as for chat."""
    if (asked.text.format or {}).get("type") != "json_object":
        return
    if not any("json" in turn["content"].lower() for turn in turns):
        message = "it must contain the word 'json', to use 'text.format' of type 'json_object'."
        raise TriremeError("invalid_request", f"Invalid 'input': {message}", param="input")
