"""Requests beside OpenAI's, as vLLM, Jina and Cohere have them: for tokens, scores and ranks."""

from __future__ import annotations

from typing import Annotated, Any, Final, TypeAlias

from pydantic import BeforeValidator, Field, model_validator

from protocol.openai_fields import MAX_INPUTS, Many, Needs, RequestFields, WithoutEffect, fault
from protocol.openai_messages import ChatMessage, Messages
from protocol.openai_tools import tool_use

MAX_TEXT_CHARS: Final = 4_194_304
MAX_TOKENS: Final = 1_048_576

Text: TypeAlias = Annotated[str, Field(max_length=MAX_TEXT_CHARS)]
_Model: TypeAlias = Annotated[str, Field(min_length=1)]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Texts: TypeAlias = Annotated[
    Many[Text],
    BeforeValidator(_as_list, json_schema_input_type=str | list[str]),
    Field(min_length=1, max_length=MAX_INPUTS),
]


class TokenizationRequest(RequestFields):
    """POST /tokenize: a prompt, or messages, whose tokens are those of a chat completion."""

    model: _Model
    """a name that `GET /v1/models` lists"""
    prompt: Text | None = None
    """a text; special tokens in it are special tokens"""
    messages: Messages | None = None
    """as in chat completions, in place of `prompt`"""
    add_special_tokens: bool | None = None
    """with `prompt`, whether the tokenizer adds its BOS and the like (it does); with `messages`,
    whether it adds them beside what the template writes (it does not)"""
    return_token_strs: bool = False
    """spell the tokens, too, as the vocabulary has them"""
    add_generation_prompt: bool = True
    """with `messages`: whether the template opens the assistant's turn"""
    continue_final_message: bool = False
    """with `messages`: go on with the last one, which must be the assistant's"""
    chat_template_kwargs: Annotated[dict[str, Any], Needs("template_variables", ({},))] = Field(
        default_factory=dict
    )
    """with `messages`: scalars for the model's template"""
    tools: list[Any] | None = None
    """with `messages`: functions that the template tells the model of"""

    @model_validator(mode="after")
    def _one_input(self) -> TokenizationRequest:
        if self.prompt is None and self.messages is None:
            raise fault("missing_required_parameter", "", "prompt")
        if self.messages is None:
            self._refuse_beside_prompt()
            return self
        if self.prompt is not None:
            raise fault("invalid_value", "it excludes 'prompt'.", "messages")
        if self.tools is not None:
            tool_use(self.tools, "required", parallel=True)
        if self.continue_final_message:
            self._check_continued(self.messages)
        return self

    def _refuse_beside_prompt(self) -> None:
        chat = ("add_generation_prompt", "continue_final_message", "chat_template_kwargs", "tools")
        for name in chat:
            if name in self.model_fields_set:
                raise fault("invalid_request", "it needs 'messages'.", name)

    def _check_continued(self, messages: list[ChatMessage]) -> None:
        if messages[-1].role != "assistant":
            message = "the last message must be the assistant's."
            raise fault("invalid_value", message, "continue_final_message")
        if self.add_generation_prompt and "add_generation_prompt" in self.model_fields_set:
            message = "it excludes 'add_generation_prompt'."
            raise fault("invalid_value", message, "continue_final_message")


class DetokenizationRequest(RequestFields):
    """POST /detokenize."""

    model: _Model
    """a name that `GET /v1/models` lists"""
    tokens: Annotated[Many[Annotated[int, Field(ge=0, lt=2**31)]], Field(max_length=MAX_TOKENS)]
    """token ids"""


class ScoringRequest(RequestFields):
    """POST /v1/score: pairs of texts, by one of two sets of names."""

    model: _Model
    """a cross-encoder, or a model that embeds"""
    text_1: Texts | None = None
    """a text for all of `text_2`, or a list of as many"""
    text_2: Texts | None = None
    """a text, or a list"""
    queries: Texts | None = None
    """another name of `text_1`; give one of the two pairs of names"""
    documents: Texts | None = None
    """another name of `text_2`"""
    user: Annotated[str | None, WithoutEffect()] = None
    """an end user's name"""

    @property
    def names(self) -> tuple[str, str]:
        """The two fields that are given."""
        if self.queries is None and self.documents is None:
            return "text_1", "text_2"
        return "queries", "documents"

    @property
    def pairs(self) -> tuple[list[str], list[str]]:
        """One text for all or one for each, and the texts to compare it with."""
        first, second = (getattr(self, name) for name in self.names)
        return first, second

    @model_validator(mode="after")
    def _pairs_fit(self) -> ScoringRequest:
        first, second = self.names
        for name in ("text_1", "text_2", "queries", "documents"):
            if name not in (first, second) and getattr(self, name) is not None:
                raise fault("invalid_value", f"it excludes '{first}' and '{second}'.", name)
        for name in (first, second):
            if getattr(self, name) is None:
                raise fault("missing_required_parameter", "", name)
        left, right = map(len, self.pairs)
        if left not in (1, right):
            message = f"expected 1 text or as many as in '{second}', {right}, got {left}."
            raise fault("invalid_value", message, first)
        return self


class RerankDocument(RequestFields):
    text: Text
    """the document's text"""


def _text_of(value: Any) -> Any:
    return {"text": value} if isinstance(value, str) else value


class RerankRequest(RequestFields):
    """POST /v1/rerank: documents to sort by what they have to do with a query."""

    model: _Model
    """a cross-encoder, or a model that embeds"""
    query: Text
    """what to compare the documents with"""
    documents: Annotated[
        Many[
            Annotated[
                RerankDocument,
                BeforeValidator(_text_of, json_schema_input_type=str | RerankDocument),
            ]
        ],
        Field(min_length=1, max_length=MAX_INPUTS),
    ]
    """texts, each as it is or as `{"text": …}`"""
    top_n: Annotated[int, Field(ge=0)] = 0
    """keep the first so many; 0 keeps all"""
    return_documents: bool = True
    """whether the answer repeats the documents' texts"""
    user: Annotated[str | None, WithoutEffect()] = None

    """an end user's name"""
