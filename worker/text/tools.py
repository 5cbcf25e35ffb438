"""Tools for a template that knows none: they are described in the system message. Pure.

The form is Hermes' one, which most models have seen: functions between `<tools>` tags, calls and
their results as JSON between tags of their own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

Message = Mapping[str, Any]


def with_tools(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """The messages with the tools told of at the start of the conversation."""
    told = _told(tools)
    first = messages[0]
    if first["role"] not in ("system", "developer"):
        return [{"role": "system", "content": told}, *messages]
    return [{**first, "content": f"{_text(first)}\n\n{told}"}, *messages[1:]]


def without_calls(messages: Sequence[Message]) -> list[Message]:
    """The messages with calls and results as plain texts; the rest as it is."""
    plain: list[Message] = []
    in_results = False
    for message in messages:
        after_result, in_results = in_results, message["role"] == "tool"
        if in_results:
            result = f"<tool_response>\n{_text(message)}\n</tool_response>"
            # several results are one turn: many templates want the roles to take turns
            before = f"{plain.pop()['content']}\n" if after_result else ""
            plain.append({"role": "user", "content": before + result})
        elif message.get("tool_calls"):
            lines = [_text(message), *map(_call, message["tool_calls"])]
            plain.append({"role": "assistant", "content": "\n".join(filter(None, lines))})
        else:
            plain.append(message)
    return plain


def _told(tools: Sequence[Mapping[str, Any]]) -> str:
    listed = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    return (
        "You can call functions. These are their descriptions, each with a JSON schema of its "
        f"arguments:\n<tools>\n{listed}\n</tools>\n"
        "To call one, write its name and arguments as JSON between tags, and nothing behind:\n"
        '<tool_call>\n{"name": "a_function", "arguments": {"an_argument": "a value"}}\n</tool_call>'
    )


def _call(call: Mapping[str, Any]) -> str:
    function = call.get("function") or {}
    name = json.dumps(function.get("name"), ensure_ascii=False)
    arguments = function.get("arguments") or "{}"
    return f'<tool_call>\n{{"name": {name}, "arguments": {arguments}}}\n</tool_call>'


def _text(message: Message) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content)
    return content or ""
