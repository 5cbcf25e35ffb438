"""OpenAI's schemas as this stack speaks them: requests, with FastChat's defaults and extensions.

Parsing is strict: JSON in, one valid type out. A custom error's type is a code of
`protocol.errors.TAXONOMY`; its context's `at` is the path of the field at fault below the model.
The messages of a chat are in `protocol/openai_messages.py`, the answers' schemas in
`protocol/openai_responses.py`; both are exported here too.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Final, Literal

from pydantic import Field, model_validator

from protocol.generation import Structure
from protocol.openai_choices import check_choices
from protocol.openai_fields import (
    Inputs,
    LogitBias,
    Many,
    Needs,
    Penalty,
    RequestFields,
    Stops,
    Unsupported,
    WithoutEffect,
    fault,
    only,
)
from protocol.openai_messages import ChatMessage, Messages, TextOrMessages
from protocol.openai_responses import (
    CapabilityList,
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
from protocol.openai_structure import ResponseFormat, StructuredOutputs, structure_of
from protocol.openai_tools import Tools, ToolUse, tool_use

__all__ = [
    "APIChatCompletionRequest",
    "CapabilityList",
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
    """one more chunk before the end, with the tokens used and no choices"""
    continuous_usage_stats: bool = False
    """the tokens used so far in every chunk"""
    include_obfuscation: Annotated[bool, only(False)] = False
    """OpenAI's padding of chunks, which is never made here"""


# ---- requests -----------------------------------------------------------------------------------


class _Inert(RequestFields):
    """OpenAI's fields that mean nothing here, accepted when they ask for nothing."""

    user: Annotated[str | None, WithoutEffect()] = None
    """OpenAI's name of an end user"""
    metadata: Annotated[dict[str, Any] | None, WithoutEffect()] = None
    """OpenAI's notes to a stored answer"""
    store: Annotated[bool, only(False)] = False
    """answers are not stored"""
    service_tier: Annotated[str, only("auto", "default")] = "auto"
    """there is one tier of service"""
    prompt_cache_key: Annotated[str | None, WithoutEffect()] = None
    """OpenAI's hint for its cache; the cache here finds shared beginnings itself"""
    prompt_cache_retention: Annotated[str, only("in_memory", "in-memory")] = "in_memory"
    """keys and values are kept in memory, as long as there is room"""
    prompt_cache_options: Unsupported = None
    """breakpoints of OpenAI's cache"""
    safety_identifier: Annotated[str | None, WithoutEffect()] = None
    """OpenAI's name of an end user"""


class GenerationFields(_Inert):
    """What chat and completions share: sampling, stops, streaming, the extensions."""

    model: Annotated[str, Field(min_length=1)]
    """a name that `GET /v1/models` lists"""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.7
    """0 always takes the most probable token"""
    top_p: Annotated[float, Field(ge=0, le=1)] = 1.0
    """samples from the most probable tokens that together have this probability; 0 is greedy"""
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] = -1
    """samples from so many most probable tokens; -1 is off, 0 is refused"""
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    """drops tokens below this share of the best one's probability"""
    n: Annotated[int, Field(ge=1, le=128)] = 1
    """answers to each prompt"""
    stop: Stops = Field(default_factory=list)
    """a text or several; the earliest match in the answer, reasoning included, ends it"""
    stream: bool = False
    """answer in pieces, as server-sent events"""
    stream_options: StreamOptions | None = None
    """`include_usage`, `continuous_usage_stats`; needs `stream`"""
    presence_penalty: Penalty = 0.0
    """taken from the logits of tokens that the answer has already"""
    frequency_penalty: Penalty = 0.0
    """the same, for each time that the answer has the token"""
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = 1.0
    """divides the logits of tokens that prompt or answer have; 1 is off"""
    length_penalty: Annotated[float, Field(ge=-10, le=10)] = 1.0
    """power of the length by which beams are scored; without beams it changes nothing"""
    logit_bias: LogitBias = Field(default_factory=dict)
    """token id → number that is added to its logit"""
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    """a signed 64-bit integer; same request and seed, same answer; random without one"""
    use_beam_search: Annotated[bool, Needs("beam_search", (False,))] = False
    """search for the `n` likeliest texts instead of sampling, with `n` beams (at most 16)"""
    stop_token_ids: Many[Annotated[int, Field(ge=0, lt=2**31)]] = Field(
        default_factory=list, max_length=1024
    )
    """token ids that end the answer"""
    include_stop_str_in_output: bool = False
    """keep the stop string in the answer"""
    ignore_eos: bool = False
    """go on after the model's own end, up to the limit of tokens"""
    min_tokens: Annotated[int, Field(ge=0)] = 0
    """no end before so many tokens; at most `max_tokens`"""
    skip_special_tokens: bool = True
    """leave special tokens out of the text"""
    echo: bool = False
    """begin with the prompt's text (in chat, with the last message if it is the assistant's)"""
    prompt_logprobs: Annotated[
        Annotated[int, Field(ge=0, le=20)] | None, Needs("prompt_logprobs")
    ] = None
    """alternatives for each token of the prompt, with log probabilities; not with `stream`; they
    and those of `echo` with `logprobs` are at most 1,000,000 in an answer, over all choices"""
    structured_outputs: Annotated[StructuredOutputs | None, Needs("structured_outputs")] = None
    """exactly one of `json`, `json_object`, `regex`, `choice`, `grammar`, which the answer's text
    is held to"""
    return_tokens_as_token_ids: bool = False
    """in log probabilities, show a token as `token_id:<id>`"""
    priority: Annotated[int, Field(ge=-(2**31), le=2**31 - 1)] = 0
    """of the requests of one key, a lower number is served first"""

    @property
    def token_limit(self) -> int | None:
        """Most completion tokens asked for; None means up to the context length."""
        raise NotImplementedError

    @cached_property
    def structure(self) -> Structure | None:
        """What the answer's text must be."""
        return structure_of(None, self.structured_outputs)

    @model_validator(mode="after")
    def _options_agree(self) -> GenerationFields:
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


class ChatCompletionRequest(GenerationFields):
    """POST /v1/chat/completions."""

    messages: Messages
    """the conversation so far"""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """most tokens of the answer; up to the context without it"""
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    """the same; when both are given they must be equal"""
    logprobs: bool = False
    """log probability of each token, of the raw distribution"""
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    """alternatives at each position; needs `logprobs`"""
    add_generation_prompt: bool = True
    """whether the template opens the assistant's turn"""
    continue_final_message: bool = False
    """go on with the last message, which must be the assistant's"""
    chat_template_kwargs: Annotated[dict[str, Any], Needs("template_variables", ({},))] = Field(
        default_factory=dict
    )
    """scalars for the model's template; refused are names that it does not use, and those that
    transformers itself gives it"""
    response_format: Annotated[
        ResponseFormat | None, Needs("structured_outputs", ({"type": "text"},))
    ] = None
    """what the answer's text must be: of type `text`, `json_object` or `json_schema`"""
    tools: Tools | None = None
    """functions that may be called, each of another name"""
    tool_choice: Annotated[Any, Needs("structured_outputs", ("none", "auto"))] = None
    """which of them: `auto`, `none`, `required`, a function, or several that are allowed"""
    parallel_tool_calls: bool = True
    """whether an answer may have several calls; else the first one ends it"""
    modalities: Annotated[Many[str], only(["text"])] = Field(default_factory=lambda: ["text"])
    """answers are texts"""
    verbosity: Annotated[str, only("medium")] = "medium"
    """how long the answer is"""
    reasoning_effort: Annotated[
        Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None,
        Needs("plain_answers"),
        Needs("reasoning_effort", ("none",)),
    ] = None
    """how long the model thinks before it answers, where its template has a switch for that"""
    audio: Unsupported = None
    """an answer that is spoken"""
    prediction: Unsupported = None
    """a guess at the answer"""
    web_search_options: Unsupported = None
    """a search in the web"""
    moderation: Unsupported = None
    """a moderation of input and answer"""
    functions: Unsupported = None
    """OpenAI's former `tools`"""
    function_call: Unsupported = None
    """OpenAI's former `tool_choice`"""

    @property
    def token_limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @cached_property
    def tool_use(self) -> ToolUse:
        """What the tools come to."""
        return tool_use(self.tools, self.tool_choice, parallel=self.parallel_tool_calls)

    @cached_property
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
        check_choices(self)
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
    """the conversation, or one text, which is taken as a rendered prompt"""

    def _check_turns(self, messages: list[ChatMessage] | str) -> None:
        if not isinstance(messages, str):
            super()._check_turns(messages)
        elif self.continue_final_message:
            message_text = "it needs 'messages' to be an array."
            raise fault("invalid_value", message_text, "continue_final_message")


class CompletionRequest(GenerationFields):
    """POST /v1/completions."""

    prompt: Inputs
    """a text, a list of texts, token ids, or a list of lists of token ids; n (or
    `best_of`) × prompts is at most 2,048"""
    max_tokens: Annotated[int, Field(ge=1)] = 16
    """most tokens of each answer"""
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    """alternatives for each token, as OpenAI's four arrays"""
    best_of: Annotated[int, Field(ge=1, le=128)] | None = None
    """so many are generated, and the `n` with the highest mean log probability are given, best
    first; all are counted in `usage`; more than `n` is not streamed; with `use_beam_search` it is
    the number of beams"""
    add_special_tokens: bool = True
    """whether a text prompt gets the tokenizer's BOS and the like"""
    suffix: Annotated[str | None, Needs("suffix")] = None
    """the text behind the gap that is filled, for models that were trained for it"""

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens

    @model_validator(mode="after")
    def _completion_options_agree(self) -> CompletionRequest:
        check_choices(self, prompts=len(self.prompt), best_of=self.best_of)
        if self.suffix and self.echo:
            raise fault("unsupported_parameter", "it does not go with 'suffix'.", "echo")
        return self


class EmbeddingsRequest(RequestFields):
    """POST /v1/embeddings."""

    model: Annotated[str, Field(min_length=1)]
    """a name that `GET /v1/models` lists"""
    input: Inputs
    """a text, a list of texts, token ids, or a list of lists of token ids; no empty text"""
    encoding_format: Literal["float", "base64"] = "float"
    """numbers, or base64 of little-endian float32"""
    dimensions: Annotated[int, Field(ge=1, le=65_536)] | None = None
    """keep the first so many numbers (at most the model's), then normalise again; all without it"""
    user: Annotated[str | None, WithoutEffect()] = None
    """OpenAI's name of an end user"""
    engine: Annotated[str | None, WithoutEffect()] = None
    """FastChat's field"""

    @model_validator(mode="after")
    def _no_empty_text(self) -> EmbeddingsRequest:
        if "" in self.input:
            raise fault("invalid_value", "an empty string cannot be embedded.", "input")
        return self


class TokenCheckPrompt(RequestFields):
    model: Annotated[str, Field(min_length=1)]
    """a name that `GET /v1/models` lists"""
    prompt: str
    """a rendered prompt"""
    max_tokens: Annotated[int, Field(ge=0)]
    """tokens that should have room after it"""


class TokenCheckRequest(RequestFields):
    """POST /api/v1/token_check."""

    prompts: Annotated[Many[TokenCheckPrompt], Field(min_length=1, max_length=256)]
    """each with its model"""


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
