"""OpenAI's schemas of answers. A field that is not set is not sent.

The text below a field is its description in the OpenAPI document.
"""

from __future__ import annotations

from typing import Any, Literal

import shortuuid
from pydantic import BaseModel, ConfigDict, Field


class _Answer(BaseModel):
    model_config = ConfigDict(protected_namespaces=(), use_attribute_docstrings=True)

    def to_json(self) -> bytes:
        """As JSON bytes: fields that were not set are left out, a null that was set is sent."""
        return self.model_dump_json(exclude_unset=True).encode()


class PromptTokensDetails(_Answer):
    cached_tokens: int = 0
    """tokens of the prompt whose keys and values were there already"""


class CompletionTokensDetails(_Answer):
    reasoning_tokens: int = 0
    """tokens of the answers that were thought before them"""


class UsageInfo(_Answer):
    prompt_tokens: int = 0
    """tokens of all prompts, each counted once"""
    total_tokens: int = 0
    """tokens of prompts and answers"""
    completion_tokens: int | None = 0
    """tokens of all answers"""
    prompt_tokens_details: PromptTokensDetails | None = None
    """where the prompt's tokens came from"""
    completion_tokens_details: CompletionTokensDetails | None = None
    """what the answers' tokens are"""


class TopLogprob(_Answer):
    token: str
    """the token's text"""
    logprob: float
    """natural logarithm of its probability in the raw distribution"""
    bytes: list[int] | None
    """the token's UTF-8 bytes; they may be a part of a character"""


class ChatLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]
    """the most probable tokens at this position, best first"""


class ChatLogprobs(_Answer):
    content: list[ChatLogprob] | None
    """one entry for each token of the answer"""
    refusal: list[ChatLogprob] | None = None
    """OpenAI's entries for a refusal; none here"""


class FunctionCall(_Answer):
    name: str
    """the function's name"""
    arguments: str
    """its arguments, JSON as a text"""


class ToolCall(_Answer):
    id: str
    """a `tool` message refers to it"""
    type: Literal["function"]
    """always `function`"""
    function: FunctionCall
    """what is to be called"""


class ChatResponseMessage(_Answer):
    role: Literal["assistant"]
    """always `assistant`"""
    content: str | None
    """the answer's text; null beside forced calls"""
    refusal: str | None = None
    """always null here"""
    reasoning_content: str | None = None
    """what the model thought before the answer, where it did"""
    tool_calls: list[ToolCall] | None = None
    """the calls that the model asks for"""


class ChatChoice(_Answer):
    index: int
    """which of the `n` answers"""
    message: ChatResponseMessage
    """the answer"""
    logprobs: ChatLogprobs | None
    """present when they were asked for"""
    finish_reason: Literal["stop", "length", "tool_calls"] | None
    """`stop`: the model's end, or a stop string or id; `length`: a limit of tokens; `tool_calls`:
    calls are asked for"""


class ChatCompletionResponse(_Answer):
    id: str
    """unique for each answer"""
    object: Literal["chat.completion"]
    """always `chat.completion`"""
    created: int
    """unix seconds"""
    model: str
    """the model's name, as it was asked for"""
    choices: list[ChatChoice]
    """`n` answers"""
    usage: UsageInfo
    """tokens used"""
    system_fingerprint: str | None = None
    """always null here"""
    prompt_logprobs: list[dict[str, Any] | None] | None = None
    """for each token of the prompt the best tokens by id, with `logprob`, `rank` and
    `decoded_token`; null for the first"""


class FunctionDelta(_Answer):
    name: str | None = None
    """the function's whole name, in a call's first piece"""
    arguments: str
    """more of the arguments' text"""


class ToolCallDelta(_Answer):
    """The first of a call has its id, type and name."""

    index: int
    """which of the calls"""
    id: str | None = None
    """in a call's first piece"""
    type: Literal["function"] | None = None
    """in a call's first piece"""
    function: FunctionDelta
    """more of the call"""


class ChatDelta(_Answer):
    role: Literal["assistant"] | None = None
    """in a choice's first chunk"""
    content: str | None = None
    """more of the answer's text"""
    reasoning_content: str | None = None
    """more of what the model thinks before the answer"""
    tool_calls: list[ToolCallDelta] | None = None
    """more of the calls"""


class ChatStreamChoice(_Answer):
    index: int
    """which of the `n` answers"""
    delta: ChatDelta
    """what is new"""
    logprobs: ChatLogprobs | None = None
    """present when they were asked for"""
    finish_reason: Literal["stop", "length", "tool_calls"] | None = None
    """in a choice's last chunk"""


class ChatCompletionStreamResponse(_Answer):
    id: str
    """the same in all chunks of a stream"""
    object: Literal["chat.completion.chunk"]
    """always `chat.completion.chunk`"""
    created: int
    """unix seconds"""
    model: str
    """the model's name, as it was asked for"""
    choices: list[ChatStreamChoice]
    """what is new; empty in the chunk of the usage"""
    system_fingerprint: str | None = None
    """always null here"""
    usage: UsageInfo | None = None
    """in the last chunk, with `stream_options.include_usage`"""


class CompletionLogprobs(_Answer):
    """The legacy arrays: one entry a token in each; offsets are in characters of the text."""

    text_offset: list[int]
    """where each token begins, in characters of the text"""
    token_logprobs: list[float | None]
    """natural logarithm of each token's probability; null for the first of a prompt"""
    tokens: list[str]
    """each token's text"""
    top_logprobs: list[dict[str, float] | None] | None
    """the most probable tokens at each position, by their text"""


class CompletionChoice(_Answer):
    index: int
    """which answer: answer i to prompt p has p * n + i"""
    text: str
    """the answer"""
    logprobs: CompletionLogprobs | None
    """present when they were asked for"""
    finish_reason: Literal["stop", "length"] | None
    """`stop`: the model's end, or a stop string or id; `length`: a limit of tokens; null before
    the end of a stream"""
    prompt_logprobs: list[dict[str, Any] | None] | None = None
    """for each token of the prompt the best tokens by id, with `logprob`, `rank` and
    `decoded_token`; null for the first"""


class CompletionResponse(_Answer):
    """An answer to /v1/completions, and a chunk of its stream (which has no usage till the end)."""

    id: str
    """unique for each answer"""
    object: Literal["text_completion"]
    """always `text_completion`"""
    created: int
    """unix seconds"""
    model: str
    """the model's name, as it was asked for"""
    choices: list[CompletionChoice]
    """`n` answers to each prompt, in order"""
    system_fingerprint: str | None = None
    """always null here"""
    usage: UsageInfo | None = None
    """tokens used"""


class EmbeddingObject(_Answer):
    object: Literal["embedding"]
    """always `embedding`"""
    embedding: list[float] | str
    """numbers of a vector of length 1, or base64 of them as little-endian float32"""
    index: int
    """which of the inputs"""


class EmbeddingsResponse(_Answer):
    object: Literal["list"]
    """always `list`"""
    data: list[EmbeddingObject]
    """a vector for each input, in order"""
    model: str
    """the model's name, as it was asked for"""
    usage: UsageInfo
    """tokens used"""


class ModelPermission(_Answer):
    id: str = Field(default_factory=lambda: "modelperm-" + shortuuid.random())
    """unique"""
    object: Literal["model_permission"] = "model_permission"
    """always `model_permission`"""
    created: int = 0
    """unix seconds of the gateway's start"""
    allow_create_engine: bool = False
    """no engines are made"""
    allow_sampling: bool = True
    """whether text can be sampled"""
    allow_logprobs: bool = True
    """whether log probabilities are given"""
    allow_search_indices: bool = True
    """there are no search indices"""
    allow_view: bool = True
    """whether the model is shown"""
    allow_fine_tuning: bool = False
    """models are not tuned"""
    organization: str = "*"
    """everybody's"""
    group: str | None = None
    """no group's"""
    is_blocking: bool = False
    """never"""


class ModelCard(_Answer):
    id: str
    """the name by which to ask for it"""
    object: Literal["model"] = "model"
    """always `model`"""
    created: int = 0
    """unix seconds of the gateway's start"""
    owned_by: str = "trireme"
    """always `trireme`"""
    root: str | None = None
    """the same name"""
    parent: str | None = None
    """always null"""
    permission: list[ModelPermission] = Field(default_factory=list)
    """as FastChat's clients expect them"""
    max_model_len: int | None = None
    """tokens of prompt and answer together; null when it is not known"""


class ModelList(_Answer):
    object: Literal["list"] = "list"
    """always `list`"""
    data: list[ModelCard] = Field(default_factory=list)
    """the models that can be served now, by name"""


class FieldCapability(_Answer):
    """How a field of a request is answered."""

    support: Literal["honoured", "default_only", "refused"]
    """`default_only`: only values that ask for nothing are accepted; `refused`: a 400 names the
    field"""
    description: str
    """what it is for"""
    accepts: dict[str, Any]
    """a JSON schema of the values; null is accepted too and means the default"""
    required: bool = False
    """whether it must be there"""
    no_effect: bool = False
    """any value is accepted, and none changes the answer"""
    default: Any = None
    """what holds without it"""


class OperationCapability(_Answer):
    path: str
    """the route"""
    served: bool
    """whether the model does this at all"""
    fields: dict[str, FieldCapability] | None = None
    """by name; absent where it is not served"""


class ModelCapabilities(_Answer):
    id: str
    """the model's name"""
    object: Literal["model.capabilities"]
    """always `model.capabilities`"""
    context_length: int | None
    """tokens of prompt and answer together; null when it is not known"""
    engines: list[str]
    """of its workers"""
    operations: dict[str, OperationCapability]
    """by name"""


class CapabilityList(_Answer):
    object: Literal["list"]
    """always `list`"""
    unknown_fields: Literal["refused", "ignored"]
    """what happens to fields that are not listed"""
    data: list[ModelCapabilities]
    """the models that can be served now, by name"""


class TokenCheckItem(_Answer):
    """The seed spells these fields so."""

    fits: bool
    """whether prompt and `max_tokens` fit into the context"""
    tokenCount: int
    """tokens of the prompt"""
    contextLength: int
    """tokens of prompt and answer together"""


class TokenCheckResponse(_Answer):
    prompts: list[TokenCheckItem]
    """one for each prompt, in order"""


class TokenizationResponse(_Answer):
    count: int
    """how many tokens"""
    max_model_len: int
    """the model's context, in tokens"""
    tokens: list[int]
    """their ids"""
    token_strs: list[str] | None
    """as the vocabulary spells them, where that was asked for"""


class DetokenizationResponse(_Answer):
    prompt: str
    """the tokens' text, special tokens included"""


class ScoreObject(_Answer):
    index: int
    """which pair"""
    object: Literal["score"]
    """always `score`"""
    score: float
    """how much the two texts have to do with each other"""


class ScoringResponse(_Answer):
    id: str
    """of this answer"""
    object: Literal["list"]
    """always `list`"""
    created: int
    """unix seconds"""
    model: str
    """the model that was asked"""
    data: list[ScoreObject]
    """a score for each pair, in order"""
    usage: UsageInfo
    """tokens that were read"""


class RankedText(_Answer):
    text: str
    """the document's text"""


class RankedDocument(_Answer):
    index: int
    """which of the request's documents"""
    relevance_score: float
    """what it has to do with the query"""
    document: RankedText | None = None
    """the document, unless the request wants none"""


class RerankResponse(_Answer):
    id: str
    """of this answer"""
    model: str
    """the model that was asked"""
    usage: UsageInfo
    """tokens that were read"""
    results: list[RankedDocument]
    """the documents, the highest score first"""


class ErrorBody(_Answer):
    message: str
    """one sentence: what is wrong, and the limit"""
    type: str
    """`invalid_request_error`, `requests`, `insufficient_quota`, `server_error` or `timeout`"""
    param: str | None
    """the field at fault, such as `messages[0].role`"""
    code: str | None
    """a word for programs; null for the plainest faults"""


class ErrorResponse(_Answer):
    """What every failed request gets; `error_code` is FastChat's number."""

    error: ErrorBody
    """in OpenAI's form"""
    error_code: int
    """FastChat's number of it"""
