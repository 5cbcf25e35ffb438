"""The items of a conversation as OpenAI's Responses API has them: messages, calls, reasoning.

Parsing is strict, as in `protocol/openai.py`; items of other types are refused by name.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import BeforeValidator, Discriminator, Field, Tag, TypeAdapter, model_validator

from protocol.openai_fields import Many, RequestFields, Unsupported, fault, only, text_or

Status: TypeAlias = Literal["in_progress", "completed", "incomplete"]


class TextPart(RequestFields):
    """A piece of a message's or a result's text; media are refused by their type."""

    type: Literal["input_text", "output_text", "refusal"]
    """which of the three it is"""
    text: str | None = None
    """of an `input_text` or `output_text`"""
    refusal: str | None = None
    """the text of a `refusal`"""
    annotations: list[Any] | None = None
    """accepted as it was answered; without effect"""
    logprobs: list[Any] | None = None
    """accepted as it was answered; without effect"""
    prompt_cache_breakpoint: dict[str, Any] | None = None
    """without effect: the cache finds shared beginnings itself"""

    @model_validator(mode="after")
    def _has_text(self) -> TextPart:
        name = "refusal" if self.type == "refusal" else "text"
        if getattr(self, name) is None:
            raise fault("missing_required_parameter", "", name)
        return self


Content: TypeAlias = Annotated[
    Annotated[str, Tag("~text")] | Annotated[Many[TextPart], Tag("~list"), Field(min_length=1)],
    text_or("content parts"),
]


def text_of(content: str | list[TextPart]) -> str:
    """As one text; parts are joined by a line break."""
    if isinstance(content, str):
        return content
    return "\n".join(part.text or part.refusal or "" for part in content)


class MessageItem(RequestFields):
    """What somebody said, or the model answered."""

    type: Literal["message"] = "message"
    """`message`, which may be left out"""
    role: Literal["user", "assistant", "system", "developer"]
    """who speaks"""
    content: Content
    """a text, or parts that are joined by a line break"""
    id: str | None = None
    """accepted as it was answered; without effect"""
    status: Status | None = None
    """accepted as it was answered; without effect"""
    phase: Literal["commentary", "final_answer"] | None = None
    """accepted as it was answered; without effect"""


class FunctionCallItem(RequestFields):
    """A call that the model made; the arguments are any text."""

    type: Literal["function_call"]
    """always `function_call`"""
    call_id: Annotated[str, Field(min_length=1)]
    """which its result names"""
    name: str
    """of the function"""
    arguments: str
    """as the model wrote them: any text"""
    id: str | None = None
    """accepted as it was answered; without effect"""
    status: Status | None = None
    """accepted as it was answered; without effect"""
    caller: Unsupported = None
    """programs that call"""
    namespace: Unsupported = None
    """of the function"""


class FunctionCallOutputItem(RequestFields):
    """What a call came to."""

    type: Literal["function_call_output"]
    """always `function_call_output`"""
    call_id: Annotated[str, Field(min_length=1)]
    """of a call before it"""
    output: Content
    """a text, or parts"""
    name: str | None = None
    """of the function, for the template"""
    id: str | None = None
    """accepted as it was answered; without effect"""
    status: Status | None = None
    """accepted as it was answered; without effect"""
    caller: Unsupported = None
    """programs that call"""
    namespace: Unsupported = None
    """of the function"""


class ReasoningText(RequestFields):
    type: Literal["reasoning_text"]
    """always `reasoning_text`"""
    text: str
    """what was thought"""


class SummaryText(RequestFields):
    type: Literal["summary_text"]
    """always `summary_text`"""
    text: str
    """of what was thought; not read"""


class ReasoningItem(RequestFields):
    """What the model thought; a summary that another server made is kept, and not read."""

    type: Literal["reasoning"]
    """always `reasoning`"""
    id: str | None = None
    """accepted as it was answered; without effect"""
    summary: Many[SummaryText] = Field(default_factory=list)
    """kept, and not read"""
    content: Many[ReasoningText] = Field(default_factory=list)
    """what the model thought"""
    encrypted_content: Unsupported = None
    """reasoning that another server encrypted"""
    status: Status | None = None
    """accepted as it was answered; without effect"""


class ItemReference(RequestFields):
    """An item of a stored response, by its id."""

    type: Annotated[str, only("item_reference")] = "item_reference"
    """`item_reference`, which may be left out"""
    id: str
    """of an item of a stored response"""


_KINDS: Final = frozenset(
    {"message", "function_call", "function_call_output", "reasoning", "item_reference"}
)


def _kind(value: Any) -> Any:
    """An item's type; a message and a reference need not tell it."""
    if not isinstance(value, dict):
        return None
    kind = value.get("type")
    if kind is not None:
        return kind
    return "message" if "role" in value else "item_reference" if "id" in value else None


def _known(value: Any) -> Any:
    if not isinstance(value, dict):
        raise fault("invalid_type", "expected an object.")
    kind = _kind(value)
    if kind is None:
        raise fault("missing_required_parameter", "", "type")
    if not isinstance(kind, str) or kind not in _KINDS:
        shown = ", ".join(f"'{one}'" for one in sorted(_KINDS))
        message = f"items of type '{str(kind)[:100]}' are not supported, only {shown}."
        raise fault("unsupported_parameter", message, "type")
    return value


def _tag(value: Any) -> str:
    return f"~{_kind(value)}"


Item: TypeAlias = Annotated[
    Annotated[MessageItem, Tag("~message")]
    | Annotated[FunctionCallItem, Tag("~function_call")]
    | Annotated[FunctionCallOutputItem, Tag("~function_call_output")]
    | Annotated[ReasoningItem, Tag("~reasoning")]
    | Annotated[ItemReference, Tag("~item_reference")],
    Discriminator(_tag),
    BeforeValidator(_known),
]
ITEMS: Final[TypeAdapter[Many[Item]]] = TypeAdapter(list[Item])
"""Reads items that were stored."""


Input: TypeAlias = Annotated[
    Annotated[str, Tag("~text")] | Annotated[Many[Item], Tag("~list"), Field(min_length=1)],
    text_or("items"),
]
