"""The Messages API's answers. They describe what the gateway renders, which the tests check."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field


class _Answer(BaseModel):
    model_config = ConfigDict(
        extra="forbid", protected_namespaces=(), use_attribute_docstrings=True
    )


class AnswerText(_Answer):
    type: Literal["text"]
    """always `text`"""
    text: str
    """the text"""
    citations: None
    """always null"""


class AnswerThinking(_Answer):
    type: Literal["thinking"]
    """always `thinking`"""
    thinking: str
    """what the model thought"""
    signature: str
    """always empty, as nothing is signed"""


class AnswerToolUse(_Answer):
    type: Literal["tool_use"]
    """always `tool_use`"""
    id: str
    """which the call's result names"""
    name: str
    """of the tool"""
    input: dict[str, Any]
    """its arguments"""


AnswerBlock: TypeAlias = Annotated[
    AnswerText | AnswerThinking | AnswerToolUse, Field(discriminator="type")
]


class MessageTokensDetails(_Answer):
    thinking_tokens: int
    """tokens of the answer that were thought before it"""


class MessageUsage(_Answer):
    """`input_tokens` are those of the prompt that were not cached."""

    input_tokens: int
    """tokens of the prompt that were not cached"""
    cache_creation_input_tokens: int
    """always 0: nothing is charged for"""
    cache_read_input_tokens: int
    """tokens of the prompt whose keys and values were there already"""
    output_tokens: int
    """tokens of the answer, thinking included"""
    output_tokens_details: MessageTokensDetails
    """what they are"""
    service_tier: Literal["standard"]
    """always `standard`"""


class MessageAnswer(_Answer):
    """What POST /v1/messages answers."""

    id: str
    """of this answer"""
    type: Literal["message"]
    """always `message`"""
    role: Literal["assistant"]
    """always `assistant`"""
    model: str
    """the model that was asked"""
    content: list[AnswerBlock]
    """blocks of thinking, text and calls"""
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"] | None
    """why it ended"""
    stop_sequence: str | None
    """the text that ended it, where one did"""
    usage: MessageUsage
    """tokens that were used"""


class TokenCount(_Answer):
    """What POST /v1/messages/count_tokens answers."""

    input_tokens: int
    """tokens of the prompt"""


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
