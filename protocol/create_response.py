"""OpenAI's Responses API as this stack speaks it: the request, with the seed's defaults.

Every field of OpenAI's `CreateResponse` is honoured, accepted with its default only, or refused.
The items of `input` are in `protocol/response_items.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from protocol.generation import Structure
from protocol.openai_fields import RequestFields, Unsupported, fault, moved, only
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
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    output_schema: Unsupported = None
    defer_loading: Annotated[bool, only(False)] = False
    allowed_callers: Annotated[list[str], only(["direct"])] = Field(
        default_factory=lambda: ["direct"]
    )

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
    verbosity: Annotated[str, only("medium")] = "medium"


class ReasoningOptions(RequestFields):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Summary | None = None
    generate_summary: Summary | None = None
    context: Annotated[str, only("auto")] = "auto"
    mode: Annotated[str, only("standard")] = "standard"


class ResponseStreamOptions(RequestFields):
    include_obfuscation: Annotated[bool, only(False)] = False


class CreateResponse(RequestFields):
    """POST /v1/responses."""

    model: Annotated[str, Field(min_length=1)]
    input: Input
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool = True
    stream: bool = False
    stream_options: ResponseStreamOptions | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.7
    top_p: Annotated[float, Field(ge=0, le=1)] = 1.0
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 0
    include: list[Annotated[str, only(LOGPROBS, "reasoning.encrypted_content")]] = Field(
        default_factory=list
    )
    text: TextOptions = Field(default_factory=TextOptions)
    reasoning: ReasoningOptions = Field(default_factory=ReasoningOptions)
    tools: list[FunctionTool] = Field(default_factory=list)
    tool_choice: Any = "auto"
    parallel_tool_calls: bool = True
    max_tool_calls: Annotated[int, Field(ge=1)] | None = None
    metadata: Metadata = Field(default_factory=dict)
    truncation: Annotated[str, only("disabled")] = "disabled"
    background: Annotated[bool, only(False)] = False
    service_tier: Annotated[str, only("auto", "default")] = "auto"
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Annotated[str, only("in_memory", "in-memory")] = "in_memory"
    prompt_cache_options: Unsupported = None
    prompt: Unsupported = None
    conversation: Unsupported = None
    context_management: Unsupported = None
    moderation: Unsupported = None

    @property
    def items(self) -> list[Item]:
        """What `input` adds to the conversation."""
        if isinstance(self.input, str):
            return [MessageItem(role="user", content=self.input)]
        return self.input

    @property
    def shows_logprobs(self) -> bool:
        return LOGPROBS in self.include

    @property
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

    @property
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
