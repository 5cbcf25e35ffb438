"""OpenAI's Responses API as this stack speaks it: the request, with FastChat's defaults.

Every field of OpenAI's `CreateResponse` is honoured, accepted with its default only, or refused.
The items of `input` are in `protocol/response_items.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Final, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from protocol.generation import Structure
from protocol.openai_fields import (
    Many,
    Needs,
    RequestFields,
    Unsupported,
    WithoutEffect,
    fault,
    moved,
    only,
)
from protocol.openai_structure import structure_of
from protocol.openai_tools import ToolUse, tool_use
from protocol.response_items import Input, Item, MessageItem

LOGPROBS: Final = "message.output_text.logprobs"
Summary = Annotated[Literal["auto", "concise", "detailed"], only("auto")]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16),
]


class FunctionTool(RequestFields):
    """A function that the model may call; `type` is first, so that others are refused by it."""

    type: Annotated[str, only("function")]
    """tools that OpenAI runs are refused"""
    name: str
    """of the function"""
    description: str | None = None
    """what it does, for the model"""
    parameters: dict[str, Any] | None = None
    """a schema of its arguments; without one there are none"""
    strict: bool | None = None
    """accepted; a forced call always validates"""
    output_schema: Unsupported = None
    """a schema of what the function gives"""
    defer_loading: Annotated[bool, only(False)] = False
    """tools are told to the model at once"""
    allowed_callers: Annotated[Many[str], only(["direct"])] = Field(
        default_factory=lambda: ["direct"]
    )
    """the model calls"""

    @property
    def for_chat(self) -> dict[str, Any]:
        """As /v1/chat/completions has it."""
        function: dict[str, Any] = {"name": self.name}
        for name in ("description", "parameters", "strict"):
            if (value := getattr(self, name)) is not None:
                function[name] = value
        return {"type": "function", "function": function}


class TextOptions(RequestFields):
    format: dict[str, Any] | None = None
    """what the answer's text must be: of type `text`, `json_object` or `json_schema`"""
    verbosity: Annotated[str, only("medium")] = "medium"
    """how long the answer is"""


class ReasoningOptions(RequestFields):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    """how long the model thinks, where its template has a switch for that"""
    summary: Summary | None = None
    """reasoning is shown itself, not summed up"""
    generate_summary: Summary | None = None
    """the former name of `summary`"""
    context: Annotated[str, only("auto")] = "auto"
    """what of earlier reasoning the model sees: what the request has"""
    mode: Annotated[str, only("standard")] = "standard"
    """there is one"""


class ResponseStreamOptions(RequestFields):
    include_obfuscation: Annotated[bool, only(False)] = False
    """OpenAI's padding of events, which is never made here"""


class CreateResponse(RequestFields):
    """POST /v1/responses."""

    model: Annotated[str, Field(min_length=1)]
    """a name that `GET /v1/models` lists"""
    input: Input
    """a text, or items of a conversation"""
    instructions: str | None = None
    """stand first, as a system message; those of earlier responses do not"""
    previous_response_id: str | None = None
    """go on from a stored response: its conversation comes before `input`"""
    store: bool = True
    """whether this response is stored"""
    stream: bool = False
    """answer in typed events"""
    stream_options: ResponseStreamOptions | None = None
    """`include_obfuscation`; needs `stream`"""
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    """most tokens of the answer, reasoning included; up to the context without it"""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.7
    """0 always takes the most probable token"""
    top_p: Annotated[float, Field(ge=0, le=1)] = 1.0
    """samples from the most probable tokens that together have this probability"""
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 0
    """alternatives at each position; needs `message.output_text.logprobs` in
    `include`"""
    include: Many[Annotated[str, only(LOGPROBS, "reasoning.encrypted_content")]] = Field(
        default_factory=list
    )
    """`message.output_text.logprobs`; `reasoning.encrypted_content` gives nothing, as reasoning is
    in the open"""
    text: Annotated[TextOptions, Needs("structured_outputs", ({},))] = Field(
        default_factory=TextOptions
    )
    """`format`, what the answer's text must be, and `verbosity`"""
    reasoning: Annotated[
        ReasoningOptions,
        Needs("plain_answers"),
        Needs("reasoning_effort", ({"effort": "none"},)),
    ] = Field(default_factory=ReasoningOptions)
    """`effort`, and `summary`, which changes nothing"""
    tools: Many[FunctionTool] = Field(default_factory=list)
    """functions that may be called, each of another name"""
    tool_choice: Annotated[Any, Needs("structured_outputs", ("none", "auto"))] = "auto"
    """which of them: `auto`, `none`, `required`, a function, or several that are allowed"""
    parallel_tool_calls: bool = True
    """whether an answer may have several calls; else the first one ends it"""
    max_tool_calls: Annotated[Annotated[int, Field(ge=1)] | None, WithoutEffect()] = None
    """bounds the tools that OpenAI runs, of which there are none here"""
    metadata: Metadata = Field(default_factory=dict)
    """texts with names, given back"""
    truncation: Annotated[str, only("disabled")] = "disabled"
    """a conversation that is too long is refused"""
    background: Annotated[bool, only(False)] = False
    """a response is answered when it is asked for"""
    service_tier: Annotated[str, only("auto", "default")] = "auto"
    """there is one tier of service"""
    user: Annotated[str | None, WithoutEffect()] = None
    """given back; without effect"""
    safety_identifier: Annotated[str | None, WithoutEffect()] = None
    """given back; without effect"""
    prompt_cache_key: Annotated[str | None, WithoutEffect()] = None
    """given back; the cache finds shared beginnings itself"""
    prompt_cache_retention: Annotated[str, only("in_memory", "in-memory")] = "in_memory"
    """keys and values are kept in memory, as long as there is room"""
    prompt_cache_options: Unsupported = None
    """breakpoints of OpenAI's cache"""
    prompt: Unsupported = None
    """a prompt that OpenAI stores"""
    conversation: Unsupported = None
    """a conversation that OpenAI stores"""
    context_management: Unsupported = None
    """a conversation that is cut by itself"""
    moderation: Unsupported = None
    """a moderation of input and answer"""

    @property
    def items(self) -> list[Item]:
        """What `input` adds to the conversation."""
        if isinstance(self.input, str):
            return [MessageItem(role="user", content=self.input)]
        return self.input

    @property
    def shows_logprobs(self) -> bool:
        return LOGPROBS in self.include

    @cached_property
    def tool_use(self) -> ToolUse:
        """What the tools come to."""
        tools = [tool.for_chat for tool in self.tools] or None
        choice = None if self.tool_choice == "auto" else _choice(self.tool_choice)
        try:
            return tool_use(tools, choice, parallel=self.parallel_tool_calls)
        except PydanticCustomError as error:
            raise moved(
                error, {".function": "", "tool_choice.allowed_tools": "tool_choice"}
            ) from None

    @cached_property
    def structure(self) -> Structure | None:
        """What the answer must be: the text's format, or forced calls."""
        if forced := self.tool_use.forced:
            return forced
        try:
            found = structure_of(_format(self.text.format), None)
        except PydanticCustomError as error:
            places = {"response_format.json_schema": "text.format", "response_format": _FORMAT}
            raise moved(error, places) from None
        return found and found.model_copy(update={"param": _FORMAT})

    @model_validator(mode="after")
    def _options_agree(self) -> CreateResponse:
        if self.stream_options is not None and not self.stream:
            raise fault("invalid_request", "it needs 'stream' to be true.", "stream_options")
        if self.top_logprobs and not self.shows_logprobs:
            message = f"it needs '{LOGPROBS}' in 'include'."
            raise fault("invalid_request", message, "top_logprobs")
        formatted = (self.text.format or {}).get("type", "text") != "text"
        if self.structure is not None and self.tool_use.forced and formatted:
            raise fault("invalid_value", "it excludes a forced tool call.", _FORMAT)
        return self


_FORMAT: Final = "text.format"


def _format(asked: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """`text.format` as chat's `response_format`, which has the schema one level deeper."""
    if asked is None or asked.get("type") != "json_schema":
        return asked
    named = {name: value for name, value in asked.items() if name != "type"}
    return {"type": "json_schema", "json_schema": named}


def _choice(choice: Any) -> Any:
    """`tool_choice` as chat has it, which names functions one level deeper."""
    if not isinstance(choice, dict):
        return choice
    if choice.get("type") == "function" and "name" in choice:
        return {"type": "function", "function": {"name": choice["name"]}}
    if choice.get("type") == "allowed_tools":
        allowed = choice.get("tools")
        tools = [_choice(one) for one in allowed] if isinstance(allowed, list) else allowed
        return {
            "type": "allowed_tools",
            "allowed_tools": {"mode": choice.get("mode"), "tools": tools},
        }
    return choice
