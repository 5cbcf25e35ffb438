"""OpenAI's schemas of answers. A field that is not set is not sent."""

from __future__ import annotations

from typing import Any, Literal

import shortuuid
from pydantic import BaseModel, ConfigDict, Field


class _Answer(BaseModel):
    model_config = ConfigDict(protected_namespaces=())

    def to_json(self) -> bytes:
        """As JSON bytes: fields that were not set are left out, a null that was set is sent."""
        return self.model_dump_json(exclude_unset=True).encode()


class PromptTokensDetails(_Answer):
    cached_tokens: int = 0


class UsageInfo(_Answer):
    prompt_tokens: int = 0
    total_tokens: int = 0
    completion_tokens: int | None = 0
    prompt_tokens_details: PromptTokensDetails | None = None


class TopLogprob(_Answer):
    token: str
    logprob: float
    bytes: list[int] | None


class ChatLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(_Answer):
    content: list[ChatLogprob] | None
    refusal: list[ChatLogprob] | None = None


class FunctionCall(_Answer):
    name: str
    arguments: str


class ToolCall(_Answer):
    id: str
    type: Literal["function"]
    function: FunctionCall


class ChatResponseMessage(_Answer):
    role: Literal["assistant"]
    content: str | None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(_Answer):
    index: int
    message: ChatResponseMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"] | None


class ChatCompletionResponse(_Answer):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageInfo
    system_fingerprint: str | None = None
    prompt_logprobs: list[dict[str, Any] | None] | None = None


class FunctionDelta(_Answer):
    name: str | None = None
    arguments: str


class ToolCallDelta(_Answer):
    """The first of a call has its id, type and name."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta


class ChatDelta(_Answer):
    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChatStreamChoice(_Answer):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length", "tool_calls"] | None = None


class ChatCompletionStreamResponse(_Answer):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatStreamChoice]
    system_fingerprint: str | None = None
    usage: UsageInfo | None = None


class CompletionLogprobs(_Answer):
    """The legacy arrays: one entry a token in each; offsets are in characters of the text."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None] | None


class CompletionChoice(_Answer):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None
    prompt_logprobs: list[dict[str, Any] | None] | None = None


class CompletionResponse(_Answer):
    """An answer to /v1/completions, and a chunk of its stream (which has no usage till the end)."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    system_fingerprint: str | None = None
    usage: UsageInfo | None = None


class EmbeddingObject(_Answer):
    object: Literal["embedding"]
    embedding: list[float] | str
    index: int


class EmbeddingsResponse(_Answer):
    object: Literal["list"]
    data: list[EmbeddingObject]
    model: str
    usage: UsageInfo


class ModelPermission(_Answer):
    id: str = Field(default_factory=lambda: "modelperm-" + shortuuid.random())
    object: Literal["model_permission"] = "model_permission"
    created: int = 0
    allow_create_engine: bool = False
    allow_sampling: bool = True
    allow_logprobs: bool = True
    allow_search_indices: bool = True
    allow_view: bool = True
    allow_fine_tuning: bool = False
    organization: str = "*"
    group: str | None = None
    is_blocking: bool = False


class ModelCard(_Answer):
    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "trireme"
    root: str | None = None
    parent: str | None = None
    permission: list[ModelPermission] = Field(default_factory=list)
    max_model_len: int | None = None


class ModelList(_Answer):
    object: Literal["list"] = "list"
    data: list[ModelCard] = Field(default_factory=list)


class TokenCheckItem(_Answer):
    """The seed spells these fields so."""

    fits: bool
    tokenCount: int
    contextLength: int


class TokenCheckResponse(_Answer):
    prompts: list[TokenCheckItem]


class TokenizationResponse(_Answer):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizationResponse(_Answer):
    prompt: str


class ScoreObject(_Answer):
    index: int
    object: Literal["score"]
    score: float


class ScoringResponse(_Answer):
    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[ScoreObject]
    usage: UsageInfo


class RankedText(_Answer):
    text: str


class RankedDocument(_Answer):
    index: int
    relevance_score: float
    document: RankedText | None = None


class RerankResponse(_Answer):
    id: str
    model: str
    usage: UsageInfo
    results: list[RankedDocument]


class ErrorBody(_Answer):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(_Answer):
    """What every failed request gets; `error_code` is the seed's number."""

    error: ErrorBody
    error_code: int
