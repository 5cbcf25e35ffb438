"""The Messages API's answers. They describe what the gateway renders, which the tests check."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class AnswerText(_Answer):
    type: Literal["text"]
    text: str
    citations: None


class AnswerThinking(_Answer):
    type: Literal["thinking"]
    thinking: str
    signature: str


class AnswerToolUse(_Answer):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


AnswerBlock: TypeAlias = Annotated[
    AnswerText | AnswerThinking | AnswerToolUse, Field(discriminator="type")
]


class MessageTokensDetails(_Answer):
    thinking_tokens: int


class MessageUsage(_Answer):
    """`input_tokens` are those of the prompt that were not cached."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: MessageTokensDetails
    service_tier: Literal["standard"]


class MessageAnswer(_Answer):
    """What POST /v1/messages answers."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[AnswerBlock]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"] | None
    stop_sequence: str | None
    usage: MessageUsage


class TokenCount(_Answer):
    """What POST /v1/messages/count_tokens answers."""

    input_tokens: int


class MessageErrorBody(_Answer):
    type: str
    """its kind, as Anthropic names it: `invalid_request_error`, `overloaded_error`, …"""
    message: str
    """what is wrong, and with which field"""


class MessageError(_Answer):
    """Every error of the routes below /v1/messages."""

    type: Literal["error"]
    """always `error`"""
    error: MessageErrorBody
    """what went wrong"""
    request_id: str
    """of the request, as in the header"""
