"""FastChat's notion of a conversation: its fields, separator styles and named templates.

Owns how role messages become one prompt by a template that is data, and that data's wire form
(`/worker_get_conv_template`). Knows no tokenizer, no Jinja, no HTTP; reads its data file only.
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
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


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
    roles: Annotated[tuple[str, ...], Field(min_length=2)] = ("USER", "ASSISTANT")
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
        return dict(_ADAPTER.dump_python(_lowered(self), mode="json"))

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> Conversation:
        """Read what a FastChat worker answers; raises ValueError for what is no conversation.

        FastChat's main branch has other style integers than its last package. Its objects are
        told by the two fields that came with them.
        """
        known = {key: value for key, value in wire.items() if (key, value) != ("sep", None)}
        if wire.keys() >= {"system_message_vision", "max_image_size_mb"}:
            known["sep_style"] = _MAIN_BRANCH_STYLES.get(wire.get("sep_style"), 0)
        conv = _ADAPTER.validate_python(known)
        _fill(conv.system_template, "")  # a template that cannot be filled is refused here
        return conv


_ADAPTER = TypeAdapter(Conversation)

# FastChat's main branch put LLAMA3 in before CHATGLM, and three styles after YUAN2.
_STYLES = list(SeparatorStyle)
_MAIN_BRANCH_STYLES: Mapping[Any, SeparatorStyle] = dict(
    enumerate([*_STYLES[:7], SeparatorStyle.LLAMA3, *_STYLES[7:19], *_STYLES[20:23]], start=1)
)


def _lowered(conv: Conversation) -> Conversation:
    """The nearest conversation whose style the fschat package has."""
    if conv.sep_style <= SeparatorStyle.YUAN2:
        return conv
    if conv.sep_style is SeparatorStyle.CLLM:
        return replace(conv, sep_style=SeparatorStyle.ADD_COLON_TWO)
    if conv.sep_style is SeparatorStyle.DEFAULT:
        return replace(conv, sep_style=SeparatorStyle.ADD_COLON_SINGLE, sep="\n")
    style = _data().styles[conv.sep_style.name]
    first, last = style.turns[0], style.turns[-1]
    system = "" if style.system.when == "never" else conv.system_template
    return replace(
        conv,
        sep_style=SeparatorStyle.NO_COLON_TWO,
        system_template=style.start + system,
        roles=tuple(first.before.format(role=role) for role in conv.roles),
        messages=tuple((first.before.format(role=role), text) for role, text in conv.messages),
        sep=first.after.format(sep=conv.sep),
        sep2=last.after.format(sep=conv.sep, sep2=conv.sep2 or ""),
    )


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

    when: Literal["always", "filled", "shown", "never"]
    after: str = ""
    otherwise: str = ""


class Style(BaseModel):
    """One separator style, a record in the data file; turns take theirs in rotation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    system: System
    turns: tuple[Turn, ...]
    opening: Turn | None = None  # replaces the first turn's record
    start: str = ""
    keep_last: int = 0  # render only so many of the last messages; 0: all
    strip: bool = False  # the messages
    replace: tuple[tuple[str, str], ...] = ()  # in the messages
    strip_end: str = ""  # characters, as FastChat does, though yuan2 means a string by it
    end: str = ""


def render(conversation: Conversation, *, open_last: bool = False) -> str:
    """The prompt of a conversation; `open_last` leaves its last message open to be continued."""
    conv, style = conversation, _data().styles[conversation.sep_style.name]
    messages = conv.messages[-style.keep_last :] if style.keep_last else conv.messages
    marks: dict[str, Any] = {"sep": conv.sep, "sep2": conv.sep2 or ""}
    first_round = 1 if conv.name == "chatglm2" else 0
    parts = [style.start, _system_part(conv, style.system, marks)]
    for i, (role, message) in enumerate(messages):
        turn = style.turns[i % len(style.turns)] if i or not style.opening else style.opening
        marks |= {"role": role, "own": conv.roles[i % 2], "round": i // 2 + first_round}
        if message:
            text = _message(message, style)
            parts += [turn.before.format_map(marks), text, turn.after.format_map(marks)]
        else:
            parts.append(turn.pending.format_map(marks))
    if open_last and messages and messages[-1][1]:
        return "".join(parts[:-1])
    prompt = "".join(parts)
    if style.strip_end:
        prompt = prompt.rstrip(style.strip_end)
    return prompt + style.end.format_map(marks)


def _message(text: str, style: Style) -> str:
    for old, new in style.replace:
        text = text.replace(old, new)
    return text.strip() if style.strip else text


def _system_part(conv: Conversation, system: System, marks: Mapping[str, Any]) -> str:
    if system.when == "never":
        return ""
    prompt = _fill(conv.system_template, conv.system_message)
    shown = {"always": True, "filled": conv.system_message != "", "shown": prompt != ""}
    return prompt + system.after.format_map(marks) if shown[system.when] else system.otherwise


def _fill(template: str, message: str) -> str:
    # What str.format does with one name. A template may come from a worker, so no attributes.
    parts = string.Formatter().parse(template)
    return "".join(text + (message if field is not None else "") for text, field, _, _ in parts)


def from_messages(
    template: Conversation,
    messages: Iterable[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = True,
) -> Conversation:
    """The template with OpenAI role messages appended, and a pending assistant turn by default.

    The last system message replaces the template's own. Parts of a list content are joined by
    a line break. Raises ValueError for another role, or for a part that is not text.
    """
    system, turns = template.system_message, list(template.messages)
    for message in messages:
        role, text = message.get("role"), _text(message.get("content"))
        if role == "system":
            system = text
        elif role == "user":
            turns.append((template.roles[0], text))
        elif role == "assistant":
            turns.append((template.roles[1], text))
        else:
            raise ValueError(f"role {role!r} has no place in template {template.name!r}")
    if add_generation_prompt:
        turns.append((template.roles[1], None))
    return replace(template, system_message=system, messages=tuple(turns))


def _text(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    for part in content:
        if part.get("type") != "text":
            raise ValueError(f"content part {part.get('type')!r} is not text")
    return "\n".join(part["text"] for part in content)


def names() -> tuple[str, ...]:
    """The names of all templates, in the data file's order."""
    return tuple(_data().templates)


def named(name: str) -> Conversation:
    """The template of that name; raises ValueError listing the nearest names if there is none."""
    try:
        return _data().templates[name]
    except KeyError:
        lower = {known.lower(): known for known in names()}
        near = [lower[hit] for hit in difflib.get_close_matches(name.lower(), lower, 5, 0.5)]
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ValueError(f"no conversation template {name!r}{hint}") from None


def plain() -> Conversation:
    """The default for a model without a template: `User:` and `Assistant:` lines."""
    return named("plain")


class _Data(NamedTuple):
    styles: Mapping[str, Style]
    templates: Mapping[str, Conversation]


@functools.cache
def _data() -> _Data:
    file = importlib.resources.files("protocol") / "conversations.json"
    data = json.loads(file.read_bytes())
    styles = {name: Style.model_validate(record) for name, record in data["styles"].items()}
    return _Data(styles, {name: _template(name, **t) for name, t in data["templates"].items()})


def _template(name: str, style: str, **fields: Any) -> Conversation:
    return Conversation.from_wire({**fields, "name": name, "sep_style": SeparatorStyle[style]})


# What `match_by_probe` renders.
_USER, _ANSWER, _AGAIN = "probe question 1", "probe answer 1", "probe question 2"
_SYSTEM = "probe instruction"
_TURNS = [
    {"role": "user", "content": _USER},
    {"role": "assistant", "content": _ANSWER},
    {"role": "user", "content": _AGAIN},
]
_WITH_SYSTEM = {"role": "system", "content": _SYSTEM}
_PROBES = (_TURNS[:1], _TURNS, [_WITH_SYSTEM, *_TURNS[:1]], [_WITH_SYSTEM, *_TURNS])
_BOS = re.compile(r"<[^<>\s]+>|\[[A-Z]+\]")


def match_by_probe(render_fn: Callable[[list[dict[str, str]]], str]) -> Conversation | None:
    """The conversation that renders a few probes as `render_fn` does, or None.

    A leading BOS token on one side only is no difference. The named templates come first (without
    stop ids: those belong to one model's vocabulary); then one named `probed`, with the role marks
    read off the renderings. If `render_fn` raises for system messages or folds them into the
    user's turn, `probed` equals it without them, and shows them in front.
    """
    rendered = [_attempt(render_fn, probe) for probe in _PROBES]
    if rendered[0] is None or rendered[1] is None:
        return None
    pairs = list(zip(_PROBES, rendered, strict=True))
    for template in map(named, names()):
        if all(_renders(template, *pair) for pair in pairs):
            return replace(template, stop_token_ids=None)
    derived = _derive(rendered[0], rendered[1], rendered[2])
    return derived if derived and all(_renders(derived, *pair) for pair in pairs[:2]) else None


def _attempt(
    render_fn: Callable[[list[dict[str, str]]], str], probe: Sequence[dict[str, str]]
) -> str | None:
    try:
        return render_fn([dict(message) for message in probe])
    except Exception:  # a template refuses with whatever its engine raises
        return None


def _renders(conv: Conversation, probe: Sequence[Mapping[str, str]], expected: str | None) -> bool:
    if expected is None:
        return True
    actual = render(from_messages(conv, probe))
    longer, shorter = sorted((actual, expected), key=len, reverse=True)
    extra = longer.removesuffix(shorter)
    return longer.endswith(shorter) and (not extra or _BOS.fullmatch(extra) is not None)


def _derive(single: str, several: str, with_system: str | None) -> Conversation | None:
    """Read role prefixes and suffixes off the renderings of the first three probes."""
    start, query = _around(single, _USER)
    again, turn, answered, end = _around(several, _USER, _ANSWER, _AGAIN)
    if not (query and start == again and query == turn == end):
        return None
    before, after, rest = _around(with_system or "", _SYSTEM, _USER)
    user = _common_end(start, answered)
    if user != start:  # behind a default system part, which may end as an answer ends
        user = max(_tails(user)[::-1], key=lambda tail: len(_common_start(tail, before))) or user
    answer_end = answered.removesuffix(user)
    user_end = _common_start(query, answer_end)
    head = start.removesuffix(user)
    conv = Conversation(
        name="probed",
        system_template=_escaped(head) + "{system_message}",
        roles=(user, query.removeprefix(user_end)),
        sep_style=SeparatorStyle.NO_COLON_TWO,
        sep=user_end,
        sep2=answer_end,
        stop_str=answer_end.strip() or user.strip() or None,
    )
    if rest != query or not after.endswith(user):
        return conv
    after = after.removesuffix(user)
    if head.startswith(before) and head.endswith(after) and len(head) >= len(before + after):
        default = head[len(before) : len(head) - len(after)]
    elif not head or _BOS.fullmatch(head):
        before, default = before.removeprefix(head), ""
        conv = replace(conv, sep_style=SeparatorStyle.OPTIONAL_SYSTEM)
    else:
        return conv
    template = _escaped(before) + "{system_message}" + _escaped(after)
    return replace(conv, system_template=template, system_message=default)


def _around(text: str, *marks: str) -> list[str]:
    """The text around the marks, in their order; empty strings if they do not occur so."""
    parts = re.split("(" + "|".join(map(re.escape, marks)) + ")", text)
    return parts[::2] if tuple(parts[1::2]) == marks else [""] * (len(marks) + 1)


def _tails(text: str) -> list[str]:
    return [text[i:] for i in range(len(text) + 1)]


def _common_end(left: str, right: str) -> str:
    return next(tail for tail in _tails(left) if right.endswith(tail))


def _common_start(left: str, right: str) -> str:
    return _common_end(left[::-1], right[::-1])[::-1]


def _escaped(literal: str) -> str:
    return literal.replace("{", "{{").replace("}", "}}")
