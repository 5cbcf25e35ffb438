"""FastChat's notion of a conversation: its fields, separator styles and named templates.

Owns how role messages become one prompt string by a template that is data, and that data's wire
form (`/worker_get_conv_template`). Knows nothing of tokenizers, Jinja or HTTP, and does no I/O
but reading its own data file.
"""

from __future__ import annotations

import difflib
import functools
import importlib.resources
import json
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from itertools import takewhile
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field


class SeparatorStyle(IntEnum):
    """How turns are joined, with the integers of the fschat 0.2.36 package.

    The last five are not in that package: four came to FastChat's main branch later, and
    `OPTIONAL_SYSTEM` is ours. `Conversation.to_wire` never sends them.
    """

    ADD_COLON_SINGLE = 1
    ADD_COLON_TWO = 2
    ADD_COLON_SPACE_SINGLE = 3
    NO_COLON_SINGLE = 4
    NO_COLON_TWO = 5
    ADD_NEW_LINE_SINGLE = 6
    LLAMA2 = 7
    CHATGLM = 8
    CHATML = 9
    CHATINTERN = 10
    DOLLY = 11
    RWKV = 12
    PHOENIX = 13
    ROBIN = 14
    FALCON_CHAT = 15
    CHATGLM3 = 16
    DEEPSEEK_CHAT = 17
    METAMATH = 18
    YUAN2 = 19
    LLAMA3 = 20
    GEMMA = 21
    CLLM = 22
    DEFAULT = 23
    OPTIONAL_SYSTEM = 24


@dataclass(frozen=True, slots=True)
class Conversation:
    """A template together with the messages said so far.

    `messages` are (role name, text) pairs; a turn without text is pending: its role is rendered
    and nothing after it. The first `offset` messages are the template's own examples.
    `system_template` holds the placeholder `{system_message}`.
    """

    name: str
    system_template: str = "{system_message}"
    system_message: str = ""
    roles: tuple[str, ...] = ("USER", "ASSISTANT")
    messages: tuple[tuple[str, str | None], ...] = ()
    offset: int = 0
    sep_style: SeparatorStyle = SeparatorStyle.ADD_COLON_SINGLE
    sep: str = "\n"
    sep2: str | None = None
    stop_str: str | tuple[str, ...] | None = None
    stop_token_ids: tuple[int, ...] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The template's stop strings, however many it has."""
        if not self.stop_str:
            return ()
        return (self.stop_str,) if isinstance(self.stop_str, str) else self.stop_str

    def to_wire(self) -> dict[str, Any]:
        """The JSON object that fschat 0.2.36 builds its own `Conversation` from.

        A style that the package lacks is lowered to one that it has. A template whose system part
        is optional then shows that part empty when a request has no system message.
        """
        conv = _lowered(self)
        stops = conv.stop_str
        return {
            "name": conv.name,
            "system_template": conv.system_template,
            "system_message": conv.system_message,
            "roles": list(conv.roles),
            "messages": [list(message) for message in conv.messages],
            "offset": conv.offset,
            "sep_style": int(conv.sep_style),
            "sep": conv.sep,
            "sep2": conv.sep2,
            "stop_str": stops if stops is None or isinstance(stops, str) else list(stops),
            "stop_token_ids": None if conv.stop_token_ids is None else list(conv.stop_token_ids),
        }

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> Conversation:
        """Read what a FastChat worker answers; raises ValueError for what is no conversation.

        FastChat's main branch has other style integers than its last package. Its objects are
        told by the two fields that came with them.
        """
        fields = _Wire.model_validate(wire)
        try:
            style = _style_of(fields.sep_style, main_branch=_MAIN_BRANCH_FIELDS <= wire.keys())
        except ValueError:
            raise ValueError(f"unknown separator style {fields.sep_style}") from None
        stops = fields.stop_str
        return cls(
            name=fields.name,
            system_template=fields.system_template,
            system_message=fields.system_message,
            roles=fields.roles,
            messages=fields.messages,
            offset=fields.offset,
            sep_style=style,
            sep="\n" if fields.sep is None else fields.sep,
            sep2=fields.sep2,
            stop_str=tuple(stops) if isinstance(stops, list) else stops,
            stop_token_ids=fields.stop_token_ids,
        )


# ---- the styles, as data ------------------------------------------------------------------------


class Turn(NamedTuple):
    """What stands before and after a message, and what a turn without a message renders as.

    Placeholders: {role} the message's role, {own} the role whose turn it is by position,
    {sep}, {sep2}, {round} the number of the question-answer pair.
    """

    before: str
    after: str
    pending: str


class System(NamedTuple):
    """When the system prompt shows, what follows it, and what stands there when it does not.

    `filled`: when the system message is not empty; `shown`: when the filled-in template is not.
    """

    when: Literal["always", "filled", "shown", "never"] = "always"
    after: str = ""
    otherwise: str = ""


def _as_is(text: str) -> str:
    return text


def _rwkv_text(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\n\n", "\n")


def _yuan2_end(prompt: str, sep: str) -> str:
    # FastChat strips characters here, not the string "<n>"; a prompt has to equal its prompt.
    return prompt.rstrip("<n>") + sep


def _no_end(prompt: str, sep: str) -> str:
    return prompt


@dataclass(frozen=True, slots=True)
class Style:
    """One separator style: turns take the records of `turns` by position, in rotation."""

    system: System
    turns: tuple[Turn, ...]
    opening: Turn | None = None  # replaces the first turn's record
    start: str = ""
    keep_last: int = 0  # render only so many of the last messages; 0: all
    text: Callable[[str], str] = _as_is
    end: Callable[[str, str], str] = _no_end


_COLON = Turn("{role}: ", "{sep}", "{role}:")
_COLON_2 = Turn("{role}: ", "{sep2}", "{role}:")
_BARE = Turn("{role}", "{sep}", "{role}")
_BARE_2 = Turn("{role}", "{sep2}", "{role}")
_LINE = Turn("{role}\n", "{sep}", "{role}\n")
_COLON_LINE = Turn("{role}:\n", "{sep}", "{role}:\n")
_LLAMA3_HEAD = "<|start_header_id|>{role}<|end_header_id|>\n\n"
_GEMMA_HEAD = "<start_of_turn>{role}\n"

STYLES: Mapping[SeparatorStyle, Style] = {
    SeparatorStyle.ADD_COLON_SINGLE: Style(System("always", "{sep}"), (_COLON,)),
    SeparatorStyle.ADD_COLON_TWO: Style(System("always", "{sep}"), (_COLON, _COLON_2)),
    SeparatorStyle.ADD_COLON_SPACE_SINGLE: Style(
        System("always", "{sep}"), (Turn("{role}: ", "{sep}", "{role}: "),)
    ),
    SeparatorStyle.NO_COLON_SINGLE: Style(System(), (_BARE,)),
    SeparatorStyle.NO_COLON_TWO: Style(System(), (_BARE, _BARE_2)),
    SeparatorStyle.ADD_NEW_LINE_SINGLE: Style(System("shown", "{sep}"), (_LINE,)),
    SeparatorStyle.LLAMA2: Style(
        System("filled", "", "[INST] "),
        (Turn("{own} ", "{sep}", "{own}"), Turn("{own} ", "{sep2}", "{own}")),
        opening=Turn("", " ", "{own}"),
    ),
    SeparatorStyle.CHATGLM: Style(
        System("shown", "{sep}"),
        (
            Turn("[Round {round}]{sep}{role}：", "{sep}", "[Round {round}]{sep}{role}："),  # noqa: RUF001
            Turn("{role}：", "{sep}", "{role}："),  # noqa: RUF001
        ),
    ),
    SeparatorStyle.CHATML: Style(
        System("shown", "{sep}\n"), (Turn("{role}\n", "{sep}\n", "{role}\n"),)
    ),
    SeparatorStyle.CHATINTERN: Style(
        System(),
        (
            Turn("<s>{role}:", "{sep}\n", "<s>{role}:"),
            Turn("{role}:", "{sep2}\n", "{role}:"),
        ),
    ),
    SeparatorStyle.DOLLY: Style(
        System(), (_COLON_LINE, Turn("{role}:\n", "{sep2}\n\n", "{role}:\n"))
    ),
    SeparatorStyle.RWKV: Style(System(), (Turn("{role}: ", "\n\n", "{role}:"),), text=_rwkv_text),
    SeparatorStyle.PHOENIX: Style(System(), (Turn("{role}: <s>", "</s>", "{role}: <s>"),)),
    SeparatorStyle.ROBIN: Style(System("always", "{sep}"), (_COLON_LINE,)),
    SeparatorStyle.FALCON_CHAT: Style(System("filled", "{sep}"), (_COLON,)),
    SeparatorStyle.CHATGLM3: Style(System("filled"), (Turn("{role}\n", "", "{role}"),)),
    SeparatorStyle.DEEPSEEK_CHAT: Style(System(), (_COLON, _COLON_2)),
    SeparatorStyle.METAMATH: Style(
        System("shown", "{sep}"), (_COLON_LINE, Turn("{role}: {sep2}", "", "{role}: {sep2}"))
    ),
    SeparatorStyle.YUAN2: Style(System("filled", "{sep2}"), (Turn("", "<n>", ""),), end=_yuan2_end),
    SeparatorStyle.LLAMA3: Style(
        System("filled"),
        (Turn(_LLAMA3_HEAD, "<|eot_id|>", _LLAMA3_HEAD),),
        start="<|begin_of_text|>",
        text=str.strip,
    ),
    SeparatorStyle.GEMMA: Style(
        System("never"), (Turn(_GEMMA_HEAD, "{sep}", _GEMMA_HEAD),), start="<bos>"
    ),
    SeparatorStyle.CLLM: Style(System("always", "{sep}"), (_COLON, _COLON_2), keep_last=2),
    SeparatorStyle.DEFAULT: Style(System("always", "\n"), (Turn("{role}: ", "\n", "{role}:"),)),
    SeparatorStyle.OPTIONAL_SYSTEM: Style(System("filled"), (_BARE, _BARE_2)),
}


def render(conversation: Conversation, *, open_last: bool = False) -> str:
    """The prompt of a conversation.

    Args:
        open_last: leave the last message's turn open, for the model to go on with it.
    """
    conv, style = conversation, STYLES[conversation.sep_style]
    marks = {"sep": conv.sep, "sep2": conv.sep2 or "", "role": "", "own": "", "round": 0}
    parts = [style.start, _system_part(conv, style.system).format_map(marks)]
    if style.system.when != "never" and parts[1] == _SHOWN:
        parts[1] = ""
    return "".join(parts)


# ---- building and naming ------------------------------------------------------------------------
