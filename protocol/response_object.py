"""The Responses API's answers. They describe what the gateway renders, which the tests check."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from protocol.openai_responses import ChatLogprob
from protocol.response_items import Status


class _Answer(BaseModel):
    model_config = ConfigDict(
        extra="forbid", protected_namespaces=(), use_attribute_docstrings=True
    )


class OutputText(_Answer):
    type: Literal["output_text"]
    """always `output_text`"""
    text: str
    """the text"""
    annotations: list[Any]
    """always empty"""
    logprobs: list[ChatLogprob]
    """one a token, where `include` asks for them"""


class OutputReasoningText(_Answer):
    type: Literal["reasoning_text"]
    """always `reasoning_text`"""
    text: str
    """what was thought"""


class OutputMessage(_Answer):
    type: Literal["message"]
    """always `message`"""
    id: str
    """of this item, with which it can be sent back"""
    status: Status
    """`completed`, or `incomplete` where the limit cut it"""
    role: Literal["assistant"]
    """always `assistant`"""
    content: list[OutputText]
    """the answer's text, in one part"""


class OutputReasoning(_Answer):
    type: Literal["reasoning"]
    """always `reasoning`"""
    id: str
    """of this item, with which it can be sent back"""
    status: Status
    """`completed`, or `incomplete` where the limit cut it"""
    summary: list[Any]
    """always empty"""
    content: list[OutputReasoningText]
    """what the model thought, in one part"""


class OutputFunctionCall(_Answer):
    type: Literal["function_call"]
    """always `function_call`"""
    id: str
    """of this item, with which it can be sent back"""
    status: Status
    """`completed`, or `incomplete` where the limit cut it"""
    call_id: str
    """which the call's result names"""
    name: str
    """of the function"""
    arguments: str
    """a JSON text"""


OutputItem: TypeAlias = Annotated[
    OutputMessage | OutputReasoning | OutputFunctionCall, Field(discriminator="type")
]


class InputTokensDetails(_Answer):
    cached_tokens: int
    """tokens of the prompt whose keys and values were there already"""
    cache_write_tokens: int
    """always 0: nothing is charged for"""


class OutputTokensDetails(_Answer):
    reasoning_tokens: int
    """tokens of the answer that were thought before it"""


class ResponseUsage(_Answer):
    input_tokens: int
    """tokens of the prompt"""
    input_tokens_details: InputTokensDetails
    """where they came from"""
    output_tokens: int
    """tokens of the answer, reasoning included"""
    output_tokens_details: OutputTokensDetails
    """what they are"""
    total_tokens: int
    """tokens of prompt and answer"""


class ResponseError(_Answer):
    code: Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]
    """its kind, as OpenAI names it"""
    message: str
    """what went wrong"""


class IncompleteDetails(_Answer):
    reason: Literal["max_output_tokens"]
    """why the answer is not whole"""


class ResponseObject(_Answer):
    """What POST /v1/responses answers, and GET again."""

    id: str
    """with which it is found and gone on from"""
    object: Literal["response"]
    """always `response`"""
    created_at: int
    """unix seconds"""
    completed_at: int | None
    """unix seconds; null until it ended"""
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    """how far it is, and how it ended"""
    background: Literal[False]
    """always false"""
    error: ResponseError | None
    """why it failed, where it did"""
    incomplete_details: IncompleteDetails | None
    """why it is not whole, where it is not"""
    instructions: str | None
    """as the request has it"""
    max_output_tokens: int | None
    """as the request has it"""
    max_tool_calls: int | None
    """as the request has it"""
    metadata: dict[str, str]
    """as the request has it"""
    model: str
    """the model that was asked"""
    output: list[OutputItem]
    """what the model gave: reasoning, text, calls"""
    parallel_tool_calls: bool
    """as the request has it"""
    previous_response_id: str | None
    """as the request has it"""
    prompt_cache_key: str | None
    """as the request has it"""
    reasoning: dict[str, str | None]
    """as the request has it"""
    safety_identifier: str | None
    """as the request has it"""
    service_tier: Literal["default"]
    """always `default`"""
    store: bool
    """as the request has it"""
    temperature: float
    """as the request has it"""
    text: dict[str, Any]
    """as the request has it"""
    tool_choice: str | dict[str, Any]
    """as the request has it"""
    tools: list[dict[str, Any]]
    """as the request has it"""
    top_logprobs: int
    """as the request has it"""
    top_p: float
    """as the request has it"""
    truncation: Literal["disabled"]
    """always `disabled`"""
    usage: ResponseUsage | None
    """tokens that were used; null until it ended"""
    user: str | None
    """as the request has it"""


class DeletedResponse(_Answer):
    id: str
    """of the response that was deleted"""
    object: Literal["response"]
    """always `response`"""
    deleted: Literal[True]
    """always true"""


class InputItemList(_Answer):
    """A page of the items that a request added to its conversation."""

    object: Literal["list"]
    """always `list`"""
    data: list[dict[str, Any]]
    """the items of this page"""
    first_id: str | None
    """of the first item"""
    last_id: str | None
    """of the last item"""
    has_more: bool

    """whether items follow on the next page"""
