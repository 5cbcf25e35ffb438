"""The messages of a chat request."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, Tag, model_validator

from protocol.openai_fields import Many, RequestFields, Unsupported, fault, text_or


class ContentPart(RequestFields):
    type: Literal["text", "refusal"]
    """which of the two it is"""
    text: str | None = None
    """the text of a part of type `text`"""
    refusal: str | None = None
    """the text of a part of type `refusal`"""

    @model_validator(mode="after")
    def _has_text(self) -> ContentPart:
        if getattr(self, self.type) is None:
            raise fault("missing_required_parameter", "", self.type)
        return self


Content: TypeAlias = Annotated[
    Annotated[str, Tag("~text")] | Annotated[Many[ContentPart], Tag("~list"), Field(min_length=1)],
    text_or("content parts"),
]


class CalledFunction(RequestFields):
    """What a call of an earlier answer called."""

    name: str
    """the function's name"""
    arguments: str
    """its arguments, as the model wrote them: any text"""


class PastToolCall(RequestFields):
    id: str | None = None
    """the call's id, which the message with its result names"""
    type: Literal["function"] = "function"
    """always `function`"""
    function: CalledFunction
    """what was called"""


class ChatMessage(RequestFields):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    """who speaks; `developer` is a `system` where the template has no such role"""
    content: Content = ""
    """a text, or parts that are joined by a line break; only the assistant's may be absent"""
    name: str | None = None
    """the speaker's name, for the template"""
    tool_calls: Many[PastToolCall] | None = None
    """the calls that the assistant made, for the template"""
    tool_call_id: str | None = None
    """the call that a `tool` message answers, for the template"""
    refusal: str | None = None
    """accepted as OpenAI's clients send it back; no template is given it"""
    reasoning_content: str | None = None
    """what the assistant thought, for the template"""
    audio: Unsupported = None
    """an answer that was spoken"""
    function_call: Unsupported = None
    """OpenAI's former `tool_calls`"""
    annotations: list[Any] | None = None
    """accepted as OpenAI's clients send it back; no template is given it"""

    @model_validator(mode="before")
    @classmethod
    def _content_is_given(cls, fields: Any) -> Any:
        # null is no default here: only an assistant's turn may go without content
        if isinstance(fields, dict) and fields.get("role") in (
            "system",
            "developer",
            "user",
            "tool",
        ):
            if "content" not in fields:
                raise fault("missing_required_parameter", "", "content")
            if fields["content"] is None:
                raise fault("invalid_type", "expected a string or an array, got null.", "content")
        return fields

    @property
    def text(self) -> str:
        """The content as one text; parts are joined by a line break."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text or part.refusal or "" for part in self.content)


Messages: TypeAlias = Annotated[Many[ChatMessage], Field(min_length=1)]
TextOrMessages: TypeAlias = Annotated[
    Annotated[str, Tag("~text")] | Annotated[Messages, Tag("~list")],
    text_or("messages"),
]
