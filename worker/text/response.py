"""Reads a model's own format of reasoning and tool calls, by transformers' `ResponseParser`.

Nothing is lost: what looks like a call and is none (no JSON, a function that was not offered, an
end in the middle) is given as text, with its marks.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

import regex  # type: ignore[import-untyped]  # transformers' parser takes its patterns
from transformers.utils.chat_parsing import ResponseParser
from transformers.utils.chat_parsing.response_templates import (
    ResponseTemplate,
    load_response_template,
)

from protocol.generation import CallPiece
from worker.engine.protocol import ModelLoadError
from worker.text import formats
from worker.text.reading import Parts, Reading
from worker.text.templates import ChatTemplate
from worker.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

AUTO: Final = "auto"
OWN: Final = "own"
"""The format that a checkpoint describes itself."""

_NO_CALL = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
_REASONING = ("reasoning_content", "thinking", "reasoning")


def choose_format(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    own: Mapping[str, Any] | None,
    tool_format: str,
    reasoning_format: str,
) -> ResponseFormat | None:
    """How a model's answers are read; None where it marks nothing.

    Args:
        own: the response template that the checkpoint brings, if it brings one.
        tool_format, reasoning_format: as asked for; `auto` takes the model's own ones.

    Raises:
        ModelLoadError: the checkpoint's own response template is none.
    """
    ids = {
        text: ids[0]
        for text in tokenizer.special_tokens
        if len(ids := tokenizer.encode_inner(text, as_text=False)) == 1
    }
    if own is not None and tool_format == reasoning_format == AUTO:
        anchor = {name: own[name] for name in own if name.startswith("start_anchor")}
        try:
            return ResponseFormat(own["fields"], ids, names=(OWN, OWN), anchor=anchor)
        except (ValueError, KeyError, TypeError) as error:
            raise ModelLoadError(f"the model's response template is not usable: {error}") from error
    if tool_format == AUTO:
        # a template that knows no tools gets them told in Hermes' form
        tool_format = formats.tool_format_of(template.source) if template.knows_tools else "hermes"
        if tool_format == formats.NONE:
            log.warning(
                "it is not known how this model writes tool calls: with tool_choice auto they stay "
                "text; --tool-call-parser names a format"
            )
    if reasoning_format == AUTO:
        reasoning_format = formats.reasoning_format_of(template.source, tokenizer.special_tokens)
    names = tool_format, reasoning_format
    fields = {
        **formats.REASONING.get(reasoning_format, {}),
        **formats.TOOL_CALLS.get(tool_format, {}),
    }
    if not fields:
        return None
    return ResponseFormat(fields, ids, names=names, turn_start=template.turn_start)


class ResponseFormat:
    """See `AnswerFormat`.

    Args:
        fields: of a response template.
        names: of the formats of calls and of reasoning.
        special_ids: the tokenizer's special tokens by their texts.
        anchor: where a turn of the model begins in a prompt; None finds it by `turn_start`.
        turn_start: the text that every prompt for an answer ends with, before any reasoning.

    Raises:
        ValueError: the fields are no response template.
    """

    def __init__(
        self,
        fields: formats.Fields,
        special_ids: Mapping[str, int],
        *,
        names: tuple[str, str],
        turn_start: str = "",
        anchor: Mapping[str, Any] | None = None,
    ) -> None:
        self.tool_format, self.reasoning_format = names
        self.described = json.dumps([dict(fields), anchor], default=dict, sort_keys=True)
        self._turn_start = None if anchor else turn_start
        anchor = anchor or {"start_anchor_pattern": r"\A"}
        self._all = _loaded(fields, anchor)
        others = {n: field for n, field in fields.items() if not n.startswith("tool_calls")}
        self._no_calls = _loaded(others, anchor) if others else None
        marks = json.dumps([dict(field) for field in fields.values()], ensure_ascii=False)
        self._hidden = frozenset(
            token_id
            for text, token_id in special_ids.items()
            if not any(form in marks for form in _written(text))
        )

    def reading(
        self, prompt: str, tools: Sequence[Mapping[str, Any]] | None, *, parallel: bool
    ) -> Reading | None:
        template = self._all if tools else self._no_calls
        if template is None:
            return None
        if self._turn_start is not None:
            at = prompt.rfind(self._turn_start) if self._turn_start else -1
            prompt = prompt[at + len(self._turn_start) :] if at >= 0 else ""
        offered = [dict(tool) for tool in tools or ()]
        return Reading(
            partial(ResponseReader, template, prompt, offered, parallel=parallel), self._hidden
        )


class ResponseReader:
    """See `Reader`; one for each choice."""

    def __init__(
        self,
        template: ResponseTemplate,
        prefix: str,
        tools: list[dict[str, Any]],
        *,
        parallel: bool,
    ) -> None:
        self.reasoning = False
        self.full = False
        self._behind_mark = False
        self._space = ""
        self._parser = _Parser(template, prefix=prefix, tools=tools)
        self._names = {tool["function"]["name"] for tool in tools}
        self._parallel = parallel
        self._num_calls = 0
        for event in self._parser.initial_events:
            self._note(event)

    def feed(self, text: str) -> Parts:
        return self._parts(self._parser.feed(text))

    def finish(self) -> Parts:
        return Parts() if self.full else self._parts(self._parser.finalize()[1])

    def _parts(self, events: list[dict[str, Any]]) -> Parts:
        parts = Parts()
        for event in events:
            if self.full:
                break  # nothing that follows is wanted
            self._note(event)
            field: str = event.get("field", "")
            if event["type"] == "raw":
                parts.text += event["text"]
            elif field.startswith("tool_calls"):
                if event["type"] == "region_close":
                    self._take_calls(event, parts)
            elif event["type"] == "region_chunk":
                if field in _REASONING:
                    parts.reasoning += self._inner(self._begun(event["text"]))
                elif field != "unread":
                    parts.text += self._begun(event["text"])
        return parts

    def _begun(self, text: str) -> str:
        """Without the line breaks between a mark of reasoning and what follows it."""
        if self._behind_mark:
            text = text.lstrip()
            self._behind_mark = not text
        return text

    def _inner(self, text: str) -> str:
        """Without the line breaks before the mark at the end."""
        whole = self._space + text
        kept = whole.rstrip()
        self._space = whole[len(kept) :]
        return kept

    def _note(self, event: Mapping[str, Any]) -> None:
        if event["type"] in ("region_open", "region_close") and event["field"] in _REASONING:
            self.reasoning = event["type"] == "region_open"
            self._behind_mark = True
            self._space = ""

    def _take_calls(self, event: Mapping[str, Any], parts: Parts) -> None:
        """The calls of a region, or its text where one of them is none."""
        try:
            calls = [_call(one, self._names) for one in _each(event["value"])]
        except _NO_CALL:
            parts.text += event["raw"]
            return
        if not calls:
            parts.text += event["raw"]
        for name, arguments in calls:
            if not self.full:
                parts.calls.append(CallPiece(self._num_calls, name, ""))
                parts.calls.append(CallPiece(self._num_calls, None, arguments))
                self._num_calls += 1
                self.full = not self._parallel


class _Parser(ResponseParser):  # type: ignore[misc]  # transformers has no types
    """Keeps a region's text as it was written, and gives it where the region is none."""

    _begun = 0

    def _open_explicit(self, events: list[dict[str, Any]], field: Any, m: Any) -> None:
        self._begun = m.start()
        super()._open_explicit(events, field, m)

    def _close_current(self, events: list[dict[str, Any]]) -> None:
        first, raw = len(events), self._buffer[self._begun : self._pos]
        try:
            self._check_tags(raw)
            super()._close_current(events)
        except _NO_CALL:
            events.append({"type": "raw", "text": raw})
            self._reset_to_implicit()
        for event in events[first:]:
            event["raw"] = raw

    def _check_tags(self, raw: str) -> None:
        """Raises ValueError for a region of tags that is not closed, or holds more than tags."""
        field = self._spec.fields.get(self._current)
        if field is None or field.content != "xml-inline":
            return
        others = regex.sub(field.content_args["tag_pattern"], "", self._body, flags=regex.DOTALL)
        if others.strip() or not field.close_re.search(raw):
            raise ValueError("no whole region of tags")


def _loaded(fields: formats.Fields, anchor: Mapping[str, Any]) -> ResponseTemplate:
    """With a field for the text between the others, if they have none."""
    given = {name: dict(field) for name, field in fields.items()}
    if all({"open", "open_pattern"} & field.keys() for field in given.values()):
        given["content"] = {}
    template: ResponseTemplate = load_response_template({**anchor, "fields": given})
    return template


def _written(text: str) -> Iterator[str]:
    """Ways in which a token may stand in a template's JSON."""
    for form in (text, re.escape(text)):
        yield json.dumps(form, ensure_ascii=False)[1:-1]


def _each(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _call(value: Any, names: set[str]) -> tuple[str, str]:
    """A call's name and its arguments as JSON.

    Raises:
        one of _NO_CALL: it is no call of these functions.
    """
    function = value.get("function", value)
    if not isinstance(function, dict):  # Llama writes {"type": "function", "function": "name", …}
        function = {**value, "name": function}
    name = function["name"]
    if name not in names:
        raise ValueError("no such function")
    arguments = function.get("arguments", function.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    if not isinstance(arguments, dict):
        raise ValueError("the arguments are no object")
    written = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    try:
        written.encode()
    except UnicodeEncodeError:  # half a character
        written = json.dumps(arguments, allow_nan=False)
    return name, written
