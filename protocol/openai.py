"""OpenAI's schemas as this stack speaks them: requests, with the seed's defaults and extensions.

Parsing is strict: JSON in, one valid type out. A custom error's type is a code of
`protocol.errors.TAXONOMY`; its context's `at` is the path of the field at fault below the model.
The answers' schemas are in `protocol/openai_responses.py` and are exported here too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag, model_validator

from protocol.generation import Structure
from protocol.openai_fields import (
    MAX_CHOICES,
    Inputs,
    LogitBias,
    Penalty,
    RequestFields,
    Stops,
    Unsupported,
    fault,
    only,
)
from protocol.openai_responses import (
    ChatChoice,
    ChatCompletionResponse,
    ChatCompletionStreamResponse,
    ChatLogprob,
    ChatLogprobs,
    ChatResponseMessage,
    CompletionChoice,
    CompletionLogprobs,
    CompletionResponse,
    EmbeddingObject,
    EmbeddingsResponse,
    ErrorBody,
    ErrorResponse,
    ModelCard,
    ModelList,
    ModelPermission,
    PromptTokensDetails,
    TokenCheckItem,
    TokenCheckResponse,
    UsageInfo,
)
from protocol.openai_structure import structure_of
from protocol.openai_tools import ToolUse, tool_use

__all__ = [
    "APIChatCompletionRequest",
    "ChatChoice",
    "ChatCompletionRequest",
    "ChatCompletionResponse",
    "ChatCompletionStreamResponse",
    "ChatLogprob",
    "ChatLogprobs",
    "ChatMessage",
    "ChatResponseMessage",
    "CompletionChoice",
    "CompletionLogprobs",
    "CompletionRequest",
    "CompletionResponse",
    "EmbeddingObject",
    "EmbeddingsRequest",
    "EmbeddingsResponse",
    "ErrorBody",
    "ErrorResponse",
    "ModelCard",
    "ModelList",
    "ModelPermission",
    "PromptTokensDetails",
    "StreamOptions",
    "TokenCheckItem",
    "TokenCheckRequest",
    "TokenCheckResponse",
    "UsageInfo",
]

RESERVED_TEMPLATE_KWARGS: Final = frozenset(
    "tokenize messages conversation tools documents chat_template add_generation_prompt "
    "continue_final_message return_dict return_tensors return_assistant_tokens_mask padding "
    "truncation max_length tokenizer_kwargs".split()
)


class StreamOptions(RequestFields):
    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: Annotated[bool, only(False)] = False


# ---- messages -----------------------------------------------------------------------------------


class ContentPart(RequestFields):
    type: Literal["text", "refusal"]
    text: str | None = None
    refusal: str | None = None

    @model_validator(mode="after")
    def _has_text(self) -> ContentPart:
        if getattr(self, self.type) is None:
            raise fault("missing_required_parameter", "", self.type)
        return self


def _content_tag(value: Any) -> str | None:
    return "~text" if isinstance(value, str) else "~parts" if isinstance(value, list) else None


Content: TypeAlias = Annotated[
    Annotated[str, Tag("~text")] | Annotated[list[ContentPart], Tag("~parts"), Field(min_length=1)],
    Discriminator(
        _content_tag,
        custom_error_type="invalid_type",
        custom_error_message="expected a string or an array of content parts.",
    ),
]


class CalledFunction(RequestFields):
    """What a call of an earlier answer called; the arguments are any text."""

    name: str
    arguments: str


class ToolCall(RequestFields):
    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(RequestFields):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content = ""
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    audio: Unsupported = None
    function_call: Unsupported = None
    annotations: list[Any] | None = None

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


def _messages_tag(value: Any) -> str | None:
    return "~text" if isinstance(value, str) else "~messages" if isinstance(value, list) else None


Messages: TypeAlias = Annotated[list[ChatMessage], Field(min_length=1)]
TextOrMessages: TypeAlias = Annotated[
    Annotated[str, Tag("~text")] | Annotated[Messages, Tag("~messages")],
    Discriminator(
        _messages_tag,
        custom_error_type="invalid_type",
        custom_error_message="expected a string or an array of messages.",
    ),
]


# ---- requests -----------------------------------------------------------------------------------


class _Inert(RequestFields):
    """OpenAI's fields that mean nothing here, accepted when they ask for nothing."""

    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: Annotated[bool, only(False)] = False
    service_tier: Annotated[str, only("auto", "default")] = "auto"
    prompt_cache_key: str | None = None
    prompt_cache_retention: Annotated[str, only("in_memory", "in-memory")] = "in_memory"
    safety_identifier: str | None = None


class _Generation(_Inert):
    """What chat and completions share: sampling, stops, streaming, the extensions."""

    model: Annotated[str, Field(min_length=1)]
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.7
    top_p: Annotated[float, Field(ge=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] = -1
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    n: Annotated[int, Field(ge=1, le=128)] = 1
    stop: Stops = Field(default_factory=list)
    stream: bool = False
    stream_options: StreamOptions | None = None
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = 1.0
    length_penalty: Annotated[float, Field(ge=-10, le=10)] = 1.0
    logit_bias: LogitBias = Field(default_factory=dict)
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    use_beam_search: Annotated[bool, only(False)] = False
    stop_token_ids: list[Annotated[int, Field(ge=0, lt=2**31)]] = Field(
        default_factory=list, max_length=1024
    )
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: Annotated[int, Field(ge=0)] = 0
    skip_special_tokens: bool = True
    echo: bool = False
    prompt_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    structured_outputs: dict[str, Any] | None = None
    return_tokens_as_token_ids: bool = False
    priority: Annotated[int, Field(ge=-(2**31), le=2**31 - 1)] = 0

    @property
    def token_limit(self) -> int | None:
        """Most completion tokens asked for; None means up to the context length."""
        raise NotImplementedError

    @property
    def structure(self) -> Structure | None:
        """What the answer's text must be."""
        return structure_of(None, self.structured_outputs)

    @model_validator(mode="after")
    def _options_agree(self) -> _Generation:
        if self.structure is not None and self.min_tokens:
            message = "it does not go with structured output, which decides where it ends."
            raise fault("invalid_value", message, "min_tokens")
        if self.top_k == 0:
            raise fault("integer_below_min_value", "expected -1 (off) or at least 1.", "top_k")
        if self.stream_options is not None and not self.stream:
            raise fault("invalid_request", "it needs 'stream' to be true.", "stream_options")
        if self.prompt_logprobs is not None and self.stream:
            raise fault("invalid_request", "it needs 'stream' to be false.", "prompt_logprobs")
        if self.token_limit is not None and self.min_tokens > self.token_limit:
            message = f"{self.min_tokens} is more than max_tokens, {self.token_limit}."
            raise fault("invalid_value", message, "min_tokens")
        return self


class ChatCompletionRequest(_Generation):
    """POST /v1/chat/completions."""

    messages: Messages
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    response_format: dict[str, Any] | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool = True
    modalities: Annotated[list[str], only(["text"])] = Field(default_factory=lambda: ["text"])
    verbosity: Annotated[str, only("medium")] = "medium"
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    audio: Unsupported = None
    prediction: Unsupported = None
    web_search_options: Unsupported = None
    moderation: Unsupported = None
    functions: Unsupported = None
    function_call: Unsupported = None

    @property
    def token_limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def tool_use(self) -> ToolUse:
        """What the tools come to."""
        return tool_use(self.tools, self.tool_choice, parallel=self.parallel_tool_calls)

    @property
    def structure(self) -> Structure | None:
        forced = self.tool_use.forced
        return forced or structure_of(self.response_format, self.structured_outputs)

    @model_validator(mode="after")
    def _chat_options_agree(self) -> ChatCompletionRequest:
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise fault("invalid_value", "it differs from 'max_completion_tokens'.", "max_tokens")
        if self.top_logprobs is not None and not self.logprobs:
            raise fault("invalid_request", "it needs 'logprobs' to be true.", "top_logprobs")
        if self.tool_use.forced and structure_of(self.response_format, self.structured_outputs):
            raise fault("invalid_value", "it excludes a forced tool call.", "response_format")
        _check_json_is_named(self.response_format, self.messages)
        _check_template_kwargs(self.chat_template_kwargs)
        self._check_turns(self.messages)
        return self

    def _check_turns(self, messages: list[ChatMessage]) -> None:
        called = False
        for i, message in enumerate(messages):
            if message.role == "tool" and not called:
                raise fault(
                    "invalid_request",
                    "messages with role 'tool' must follow a message with 'tool_calls'.",
                    f"messages[{i}].role",
                )
            called = bool(message.tool_calls) or (called and message.role == "tool")
        if not self.continue_final_message:
            return
        if messages[-1].role != "assistant":
            message_text = "the last message must be the assistant's."
            raise fault("invalid_value", message_text, "continue_final_message")
        if self.add_generation_prompt and "add_generation_prompt" in self.model_fields_set:
            message_text = "it excludes 'add_generation_prompt'."
            raise fault("invalid_value", message_text, "continue_final_message")


class APIChatCompletionRequest(ChatCompletionRequest):
    """POST /api/v1/chat/completions: `messages` may be one text, taken as a rendered prompt."""

    messages: TextOrMessages  # type: ignore[assignment]  # wider than the base's on purpose

    def _check_turns(self, messages: list[ChatMessage] | str) -> None:
        if not isinstance(messages, str):
            super()._check_turns(messages)
        elif self.continue_final_message:
            message_text = "it needs 'messages' to be an array."
            raise fault("invalid_value", message_text, "continue_final_message")


class CompletionRequest(_Generation):
    """POST /v1/completions."""

    prompt: Inputs
    max_tokens: Annotated[int, Field(ge=1)] = 16
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    best_of: Annotated[int, Field(ge=1, le=128)] | None = None
    add_special_tokens: bool = True
    suffix: Unsupported = None

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens

    @model_validator(mode="after")
    def _completion_options_agree(self) -> CompletionRequest:
        if self.n * len(self.prompt) > MAX_CHOICES:
            message = f"{self.n} x {len(self.prompt)} prompts exceeds {MAX_CHOICES} choices."
            raise fault("integer_above_max_value", message, "n")
        if self.best_of is not None and self.best_of < self.n:
            raise fault("invalid_value", f"{self.best_of} is less than n, {self.n}.", "best_of")
        if self.best_of is not None and self.best_of > self.n:
            raise fault("unsupported_parameter", "more than n is not supported yet.", "best_of")
        return self


class EmbeddingsRequest(RequestFields):
    """POST /v1/embeddings."""

    model: Annotated[str, Field(min_length=1)]
    input: Inputs
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1, le=65_536)] | None = None
    user: str | None = None
    engine: str | None = None

    @model_validator(mode="after")
    def _no_empty_text(self) -> EmbeddingsRequest:
        if "" in self.input:
            raise fault("invalid_value", "an empty string cannot be embedded.", "input")
        return self


class TokenCheckPrompt(RequestFields):
    model: Annotated[str, Field(min_length=1)]
    prompt: str
    max_tokens: Annotated[int, Field(ge=0)]


class TokenCheckRequest(RequestFields):
    """POST /api/v1/token_check."""

    prompts: Annotated[list[TokenCheckPrompt], Field(min_length=1, max_length=256)]


# ---- checks that need several fields ------------------------------------------------------------


def _check_json_is_named(
    response_format: dict[str, Any] | None, messages: list[ChatMessage] | str
) -> None:
    """OpenAI's own rule: a model that is not told of JSON would write spaces without an end."""
    if response_format is None or response_format.get("type") != "json_object":
        return
    texts = [messages] if isinstance(messages, str) else [one.text for one in messages]
    if not any("json" in text.lower() for text in texts):
        message = "it must contain the word 'json', to use 'response_format' of type 'json_object'."
        raise fault("invalid_request", message, "messages")


def _check_template_kwargs(kwargs: Mapping[str, Any]) -> None:
    for name, value in kwargs.items():
        if name in RESERVED_TEMPLATE_KWARGS or not isinstance(value, str | int | float | None):
            message = f"'{name[:100]}' is reserved or its value is no scalar."
            raise fault("unknown_parameter", message, "chat_template_kwargs")
