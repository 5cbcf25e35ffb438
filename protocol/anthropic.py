"""Anthropic's Messages API as this stack speaks it: the requests, with Anthropic's defaults.

Parsing is strict, as in `protocol/openai.py`. Blocks and tools of other kinds are refused by their
`type`, which therefore stands first.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator
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
    text_or,
)
from protocol.openai_tools import ToolUse, tool_use

MIN_BUDGET_TOKENS: Final = 1024
_FORMAT: Final = "output_config.format"


class CacheControl(RequestFields):
    """Where a prompt's beginning may be kept; here all beginnings are, by themselves."""

    type: Literal["ephemeral"]
    """always `ephemeral`"""
    ttl: Literal["5m", "1h"] = "5m"
    """without effect"""


# ---- blocks -------------------------------------------------------------------------------------


class TextBlock(RequestFields):
    type: Literal["text"]
    """always `text`"""
    text: str
    """the text"""
    cache_control: Annotated[CacheControl | None, WithoutEffect()] = None
    """without effect: all beginnings of prompts are cached by themselves"""
    citations: list[Any] | None = None
    """accepted as it was answered; without effect"""


class ThinkingBlock(RequestFields):
    """What the model thought; nothing was signed, so the signature says nothing."""

    type: Literal["thinking"]
    """always `thinking`"""
    thinking: str
    """what the model thought"""
    signature: str = ""
    """not read"""


class ToolUseBlock(RequestFields):
    type: Literal["tool_use"]
    """always `tool_use`"""
    id: Annotated[str, Field(min_length=1)]
    """which its result names"""
    name: str
    """of the tool"""
    input: dict[str, Any]
    """its arguments"""
    cache_control: Annotated[CacheControl | None, WithoutEffect()] = None
    """without effect: all beginnings of prompts are cached by themselves"""
    caller: dict[str, Any] | None = None
    """accepted as it was answered; without effect"""


_CONTENT: Final = text_or("blocks")
Texts: TypeAlias = Annotated[
    Annotated[str, Tag("~text")] | Annotated[Many[TextBlock], Tag("~list")], _CONTENT
]


class ToolResultBlock(RequestFields):
    type: Literal["tool_result"]
    """always `tool_result`"""
    tool_use_id: Annotated[str, Field(min_length=1)]
    """of a call in the turn before"""
    content: Texts = ""
    """what the call came to: a text or text blocks"""
    is_error: bool = False
    """whether the call failed, which the model is told"""
    cache_control: Annotated[CacheControl | None, WithoutEffect()] = None
    """without effect: all beginnings of prompts are cached by themselves"""


_BLOCKS: Final = frozenset({"text", "thinking", "tool_use", "tool_result"})


def _known(value: Any) -> Any:
    if not isinstance(value, dict):
        raise fault("invalid_type", "expected an object.")
    if "type" not in value:
        raise fault("missing_required_parameter", "", "type")
    kind = value["type"]
    if not isinstance(kind, str) or kind not in _BLOCKS:
        shown = ", ".join(f"'{one}'" for one in sorted(_BLOCKS))
        message = f"blocks of type '{str(kind)[:100]}' are not supported, only {shown}."
        raise fault("unsupported_parameter", message, "type")
    return value


def _block_tag(value: Any) -> str:
    return f"~{value['type']}"


Block: TypeAlias = Annotated[
    Annotated[TextBlock, Tag("~text")]
    | Annotated[ThinkingBlock, Tag("~thinking")]
    | Annotated[ToolUseBlock, Tag("~tool_use")]
    | Annotated[ToolResultBlock, Tag("~tool_result")],
    Discriminator(_block_tag),
    BeforeValidator(_known),
]
Content: TypeAlias = Annotated[
    Annotated[str, Tag("~text")] | Annotated[Many[Block], Tag("~list")], _CONTENT
]
_OF_ROLE: Final = {
    "user": {"text", "tool_result"},
    "assistant": {"text", "thinking", "tool_use"},
    "system": {"text"},
}


class Message(RequestFields):
    role: Literal["user", "assistant", "system"]
    """who speaks"""
    content: Content
    """a text or blocks"""

    @property
    def blocks(self) -> list[Block]:
        """The content as blocks."""
        if isinstance(self.content, str):
            return [TextBlock(type="text", text=self.content)]
        return self.content

    @model_validator(mode="after")
    def _blocks_fit(self) -> Message:
        behind = False
        for i, block in enumerate(self.blocks):
            if block.type not in _OF_ROLE[self.role]:
                message = f"a '{block.type}' block cannot stand in a turn of '{self.role}'."
                raise fault("invalid_value", message, f"content[{i}].type")
            if block.type == "tool_result" and behind:
                message = "tool_result blocks come before all others of a turn."
                raise fault("invalid_value", message, f"content[{i}].type")
            behind = behind or block.type != "tool_result"
        return self


# ---- tools and options --------------------------------------------------------------------------


class Tool(RequestFields):
    """A function of the client's; tools that Anthropic's servers run are refused by their type."""

    type: Annotated[str, only("custom")] = "custom"
    """tools that Anthropic runs are refused"""
    name: str
    """of the tool"""
    description: str | None = None
    """what it does, for the model"""
    input_schema: dict[str, Any]
    """a schema of its arguments"""
    strict: bool | None = None
    """accepted; a forced call always validates"""
    cache_control: Annotated[CacheControl | None, WithoutEffect()] = None
    """without effect: all beginnings of prompts are cached by themselves"""
    eager_input_streaming: bool | None = None
    """accepted; arguments are always streamed"""
    defer_loading: Annotated[bool, only(False)] = False
    """tools are told to the model at once"""
    allowed_callers: Annotated[Many[str], only(["direct"])] = Field(
        default_factory=lambda: ["direct"]
    )
    """the model calls"""
    input_examples: Unsupported = None
    """examples of arguments"""

    @property
    def for_chat(self) -> dict[str, Any]:
        """As /v1/chat/completions has it."""
        function = {"name": self.name, "parameters": self.input_schema}
        if self.description is not None:
            function["description"] = self.description
        return {"type": "function", "function": function}


class ToolChoice(RequestFields):
    type: Literal["auto", "any", "tool", "none"]
    """whether and which tool must be called"""
    name: str | None = None
    """of the tool, for the type `tool`"""
    disable_parallel_tool_use: bool = False
    """whether the first call ends the answer"""

    @property
    def for_chat(self) -> Any:
        """As /v1/chat/completions has it."""
        if self.type == "tool":
            return {"type": "function", "function": {"name": self.name}}
        return "required" if self.type == "any" else self.type


class Thinking(RequestFields):
    type: Literal["enabled", "disabled", "adaptive"]
    """whether the model thinks; `adaptive` leaves it to the model"""
    budget_tokens: Annotated[int, Field(ge=MIN_BUDGET_TOKENS)] | None = None
    """below `max_tokens`; bounds nothing by itself"""
    display: Literal["summarized", "omitted"] = "summarized"
    """whether blocks of thinking show what was thought"""

    @property
    def wanted(self) -> bool | None:
        """Whether the model is to think; None leaves it to the model."""
        return {"enabled": True, "disabled": False, "adaptive": None}[self.type]

    @model_validator(mode="after")
    def _budget_fits(self) -> Thinking:
        if (self.type == "enabled") != (self.budget_tokens is not None):
            given = "needs" if self.type == "enabled" else "excludes"
            message = f"the type '{self.type}' {given} it."
            raise fault("invalid_value", message, "budget_tokens")
        return self


class OutputFormat(RequestFields):
    type: Literal["json_schema"]
    """always `json_schema`"""
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    """what the answer's text must be"""


class OutputConfig(RequestFields):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    """how long the model thinks, where its template has a switch for that"""
    format: OutputFormat | None = None
    """what the answer's text must be"""


class Metadata(RequestFields):
    user_id: str | None = None
    """of an end user; without effect"""


# ---- requests -----------------------------------------------------------------------------------


class CountTokensRequest(RequestFields):
    """POST /v1/messages/count_tokens: what a prompt is made of."""

    model: Annotated[str, Field(min_length=1)]
    """a name that `GET /v1/models` lists"""
    messages: Annotated[Many[Message], Field(min_length=1)]
    """the turns so far"""
    system: Texts | None = None
    """the system message: a text or text blocks"""
    tools: Many[Tool] = Field(default_factory=list)
    """tools of the client's that may be called"""
    tool_choice: Annotated[ToolChoice | None, Needs("structured_outputs")] = None
    """of type `auto`, `any`, `tool` or `none`"""
    thinking: Thinking | None = None
    """whether the model thinks before it answers"""
    output_config: Annotated[OutputConfig, Needs("structured_outputs", ({},))] = Field(
        default_factory=OutputConfig
    )
    """`effort` and `format`"""
    cache_control: Annotated[CacheControl | None, WithoutEffect()] = None
    """without effect: all beginnings of prompts are cached by themselves"""

    @cached_property
    def tool_use(self) -> ToolUse:
        """What the tools come to."""
        tools = [tool.for_chat for tool in self.tools] or None
        choice = self.tool_choice.for_chat if self.tool_choice is not None else None
        try:
            return tool_use(tools, choice, parallel=self.parallel_tool_calls)
        except PydanticCustomError as error:
            places = {".function.parameters": ".input_schema", ".function": ""}
            raise moved(error, places) from None

    @property
    def parallel_tool_calls(self) -> bool:
        return self.tool_choice is None or not self.tool_choice.disable_parallel_tool_use

    @cached_property
    def structure(self) -> Structure | None:
        """What the answer must be: JSON of a schema, or forced calls."""
        if forced := self.tool_use.forced:
            return forced
        if self.output_config.format is None:
            return None
        schema = self.output_config.format.schema_
        return Structure(kind="json_schema", value=schema, param=_FORMAT)

    @model_validator(mode="after")
    def _options_agree(self) -> CountTokensRequest:
        if self.structure is not None and self.tool_use.forced and self.output_config.format:
            raise fault("invalid_value", "it excludes a forced tool call.", _FORMAT)
        called: set[str] = set()
        for i, message in enumerate(self.messages):
            for j, block in enumerate(message.blocks):
                if isinstance(block, ToolResultBlock) and block.tool_use_id not in called:
                    text = "there is no tool_use block of this id in the turn before."
                    raise fault("invalid_value", text, f"messages[{i}].content[{j}].tool_use_id")
            if message.role == "assistant":
                called = {one.id for one in message.blocks if isinstance(one, ToolUseBlock)}
        if called and self.messages[-1].role == "assistant":
            text = "the calls of the last turn have no results."
            raise fault("invalid_value", text, f"messages[{len(self.messages) - 1}]")
        return self


class MessagesRequest(CountTokensRequest):
    """POST /v1/messages."""

    max_tokens: Annotated[int, Field(ge=1)]
    """most tokens of the answer; thinking counts"""
    stop_sequences: Many[Annotated[str, Field(min_length=1, max_length=1024)]] = Field(
        default_factory=list, max_length=32
    )
    """texts that end the answer"""
    temperature: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Anthropic's default, not that of OpenAI's routes"""
    top_p: Annotated[float, Field(ge=0, le=1)] = 1.0
    """samples from the most probable tokens that together have this probability"""
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """samples from so many most probable tokens; 0 is off"""
    stream: bool = False
    """answer in typed events"""
    metadata: Annotated[Metadata | None, WithoutEffect()] = None
    """`user_id`; without effect"""
    service_tier: Annotated[Literal["auto", "standard_only"], WithoutEffect()] = "auto"
    """without effect: there is one tier of service"""
    speed: Annotated[str, only("standard")] = "standard"
    """there is one"""
    container: Unsupported = None
    """a container of Anthropic's"""
    context_management: Unsupported = None
    """a conversation that is cut by itself"""
    diagnostics: Unsupported = None
    """of Anthropic's servers"""
    inference_geo: Unsupported = None
    """where Anthropic computes"""
    mcp_servers: Unsupported = None
    """servers that Anthropic calls"""
    user_profile_id: Unsupported = None
    """of Anthropic's"""
    workspace_id: Unsupported = None
    """of Anthropic's"""

    @model_validator(mode="after")
    def _budget_is_below_the_limit(self) -> MessagesRequest:
        budget = self.thinking.budget_tokens if self.thinking is not None else None
        if budget is not None and budget >= self.max_tokens:
            message = f"{budget} is not below max_tokens, {self.max_tokens}."
            raise fault("invalid_value", message, "thinking.budget_tokens")
        return self
