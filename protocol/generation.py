"""The native generation wire: one typed request, then a stream of typed events.

`Started` (or `Failed`) is always the first event: it decides the HTTP status at the gateway.
Then `Prompt` where it was asked for, `Delta`s, and exactly one terminal event: `Done` or `Failed`.
On the wire an event is one JSON object a line, tagged by `kind`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from dataclasses import fields as dataclass_fields
from json.encoder import encode_basestring
from typing import Annotated, Any, ClassVar, Final, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import from_json, to_json

from protocol.errors import TriremeError

FinishReason: TypeAlias = Literal["stop", "length"]
TokenIds: TypeAlias = list[Annotated[int, Field(ge=0)]]
GatewayId: TypeAlias = Annotated[str, Field(max_length=64)]
"""Random, one a gateway process: by it a worker counts whose requests it has in service."""
TenantId: TypeAlias = Annotated[str, Field(max_length=64)]
"""Tells those who ask apart, and says nothing else of them; empty where nobody is told apart."""
MAX_BEAMS: Final = 16
MAX_TOKENS: Final = 2**31 - 1
"""Most tokens that an answer may tell of: sums of many such counts still fit into 64 bits."""
_NOT_IN_BEAM_SEARCH: Final = {"top_p": 1.0, "top_k": -1, "min_p": 0.0, "stop": []}
"""What would change how a beam search goes, by its value that asks for nothing."""


def not_in_beam_search(sampling: Any) -> str | None:
    """The first field of `sampling` (`SamplingParams`, or with its names) that beam search cannot
    honour, or None."""
    for name, nothing in _NOT_IN_BEAM_SEARCH.items():
        if getattr(sampling, name) != nothing:
            return name
    return None


class _Wire(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,  # prompts and answers belong into no log
    )


class SamplingParams(_Wire):
    """How to choose tokens, validated. Values are the field's own terms, as vLLM spells them.

    Attributes:
        max_tokens: completion tokens; None means up to the context length.
        temperature: 0 is greedy.
        top_k: -1 is off.
        seed: None lets the worker draw one; noise depends on (seed, choice, position) alone.
        n: number of choices. best_of: number generated, of which the n best are kept by the mean
            log probability of their tokens; with beam search the number of beams.
        use_beam_search: search for the likeliest texts instead of sampling, as transformers does.
        length_penalty: of beam search: a text's score is divided by its length to this power.
        logprobs: None is off; k gives the chosen token's and the k best ones', raw distribution.
        prompt_logprobs: the same for the prompt's tokens.
        logit_bias: token id (as decimal text, JSON has no other keys) to bias.
    """

    n: Annotated[int, Field(ge=1, le=128)] = 1
    best_of: Annotated[int, Field(ge=1, le=128)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] = 0
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(ge=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1)] = -1
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = 1.0
    length_penalty: Annotated[float, Field(ge=-10, le=10)] = 1.0
    use_beam_search: bool = False
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = Field(
        default_factory=dict, max_length=1024
    )
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: list[Annotated[str, Field(min_length=1, max_length=1024)]] = Field(
        default_factory=list, max_length=64
    )
    stop_token_ids: TokenIds = Field(default_factory=list, max_length=1024)
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def num_sequences(self) -> int:
        """Texts that are worked on at once."""
        return max(self.n, self.best_of or 0)


_DEFAULT_SAMPLING: Final = SamplingParams()
"""Made once: pydantic asks for a field's default each time that a message without its defaults is
written."""


class Structure(_Wire):
    """What the text of an answer must be.

    Attributes:
        kind: json_schema with a schema, json_object, regex with a pattern, choice with a list of
            texts, grammar with one of Lark's kind, tools with functions (name, parameters: a
            schema) and whether several may be called; a call is a line with the name and one with
            the arguments.
        value: as `kind` says; None for json_object.
        param: the request's field, for errors.
    """

    kind: Literal["json_schema", "json_object", "regex", "choice", "grammar", "tools"]
    value: Any = None
    param: str = "response_format"

    @model_validator(mode="after")
    def _value_fits(self) -> Self:
        value = self.value
        match self.kind:
            case "json_schema":
                fits = isinstance(value, dict | bool)
            case "json_object":
                fits = value is None
            case "choice":
                fits = isinstance(value, list) and all(isinstance(one, str) for one in value)
            case "tools":
                fits = isinstance(value, dict)
            case _:
                fits = isinstance(value, str)
        if not fits:
            raise ValueError(f"no value for {self.kind}")
        return self


class Begun(_Wire):
    """A choice that another worker began.

    Attributes:
        ids: its completion's tokens so far.
        ended: whether that was all of it.
    """

    ids: TokenIds
    ended: bool = False


class GenerateRequest(_Wire):
    """One prompt to generate from. Exactly one of `messages`, `prompt`, `prompt_ids` is given.

    Attributes:
        request_id: unique per attempt; shows in logs of every tier.
        messages: OpenAI messages, rendered by the worker's template; control tokens that a user
            typed in them stay text.
        prompt: a rendered prompt: special tokens in it are special tokens.
        suffix: the text that follows what is generated, which is inserted between a `prompt` or
            `prompt_ids` and this; then a `prompt` is plain text, special tokens in it too.
        add_special_tokens: whether `prompt` gets the tokenizer's BOS (and the like).
        conv_stops: add the conversation template's own stop strings and ids (set for chat).
        tools: functions that the template tells the model of.
        structure: what the answer's text must be; stop strings do not cut such a text.
        parse: tell reasoning and tool calls from the text, as the model's own format marks them.
        parallel_tool_calls: whether an answer may have several calls; else the first one ends it.
        reasoning_effort: as OpenAI names them; None leaves it to the model.
        thinking: whether the model thinks before it answers; None leaves it to the model.
        echo: send a `Prompt` event with the prompt's text.
        deadline_s: seconds from arrival after which the request fails with `deadline_exceeded`.
        cache_salt: seeds the prefix cache, so tenants do not see each other's timing.
        tenant: who asks, told apart without a name: tenants who wait are served fairly.
        priority: of the tenant's own, lower is served first.
        whole: nobody reads the answer before its end, so deltas may be joined and come late.
        resume: the choices as another worker left them, to go on from there: deltas begin behind
            these tokens. `sampling.seed` is then the one that `Started` told, so that the tokens
            are those that the other worker would have given. When all have ended only `Done` comes.
        admitted: whether a worker has taken it in before, so that a full queue is no reason to
            turn it away.
        instance_id, digest: fencing; when given and not the worker's own, `wrong_instance`.
        gateway: whose request it is; not counted when empty.
    """

    request_id: Annotated[str, Field(min_length=1, max_length=256)]
    model: str
    messages: list[dict[str, Any]] | None = None
    prompt: str | None = None
    prompt_ids: TokenIds | None = None
    suffix: str | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    conv_stops: bool = False
    sampling: SamplingParams = Field(default_factory=lambda: _DEFAULT_SAMPLING)
    tools: list[dict[str, Any]] | None = None
    structure: Structure | None = None
    parse: bool = False
    parallel_tool_calls: bool = True
    reasoning_effort: str | None = None
    thinking: bool | None = None
    echo: bool = False
    deadline_s: Annotated[float, Field(gt=0)] | None = None
    cache_salt: str = ""
    tenant: TenantId = ""
    priority: int = 0
    whole: bool = False
    resume: list[Begun] | None = None
    admitted: bool = False
    instance_id: str | None = None
    digest: str | None = None
    gateway: GatewayId = ""

    @model_validator(mode="after")
    def _resume_fits(self) -> Self:
        if self.resume is None:
            return self
        if len(self.resume) != self.sampling.n or self.sampling.seed is None:
            raise ValueError("resume needs every choice, and the seed")
        if self.sampling.num_sequences != self.sampling.n or self.sampling.use_beam_search:
            raise ValueError("the best of several cannot be resumed")
        return self

    @model_validator(mode="after")
    def _one_input(self) -> Self:
        given = [x for x in (self.messages, self.prompt, self.prompt_ids) if x is not None]
        if len(given) != 1:
            raise ValueError("give exactly one of messages, prompt, prompt_ids")
        if self.suffix is not None and (self.messages is not None or self.echo):
            raise ValueError("suffix needs a prompt, and excludes echo")
        return self


class EmbedRequest(_Wire):
    """Texts or token ids to embed.

    Attributes:
        inputs: each a text or token ids.
        dimensions: keep the first so many, then normalise again; None keeps all.
    """

    request_id: Annotated[str, Field(min_length=1, max_length=256)]
    model: str
    inputs: list[str | TokenIds] = Field(min_length=1, max_length=2048)
    dimensions: Annotated[int, Field(ge=1)] | None = None
    instance_id: str | None = None
    digest: str | None = None
    gateway: GatewayId = ""
    tenant: TenantId = ""


class EmbedResponse(_Wire):
    """One vector an input: little-endian float32, base64. `prompt_tokens` counts all inputs."""

    embeddings_b64: list[str]
    dimensions: int
    prompt_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)]


class ScoreRequest(_Wire):
    """Pairs of texts to score: one query for all documents, or one for each."""

    request_id: Annotated[str, Field(min_length=1, max_length=256)]
    model: str
    queries: list[str] = Field(min_length=1, max_length=2048)
    documents: list[str] = Field(min_length=1, max_length=2048)
    instance_id: str | None = None
    digest: str | None = None
    gateway: GatewayId = ""
    tenant: TenantId = ""

    @model_validator(mode="after")
    def _pairs(self) -> Self:
        if len(self.queries) not in (1, len(self.documents)):
            raise ValueError("give one query, or as many as documents")
        return self


class ScoreResponse(_Wire):
    """One score a document; higher is nearer. `prompt_tokens` counts what was computed."""

    scores: list[float]
    prompt_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)]


class TokenizeRequest(_Wire):
    """A rendered prompt (or messages) to count; `model` names which of the worker's models.

    What `GenerateRequest` has too means what it means there.

    Attributes:
        add_special_tokens: None is what a generation does: a prompt gets them, messages get what
            the template does not write. True adds them in any case.
        entries: whether the tokens are spelled, too.
        instance_id, digest: fencing, as of a generation.
    """

    model: str
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    tools: list[dict[str, Any]] | None = None
    entries: bool = False
    reasoning_effort: str | None = None
    thinking: bool | None = None
    instance_id: str | None = None
    digest: str | None = None


class TokenizeResponse(_Wire):
    """Token ids of the prompt as the engine would see it, and the model's context length.

    Attributes:
        entries: how the vocabulary spells them, when that was asked for.
    """

    ids: TokenIds
    context_length: int
    entries: list[str] | None = None


class DetokenizeRequest(_Wire):
    """Token ids to decode; special tokens show."""

    model: str
    ids: TokenIds
    instance_id: str | None = None
    digest: str | None = None


class DetokenizeResponse(_Wire):
    text: str


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token with its log probability (natural log, raw distribution).

    `token` is its text, `bytes` its UTF-8 bytes (a token may be part of a character), `top` the
    most probable alternatives at this position, best first. `logprob` is None for the first
    token of a prompt.
    """

    id: int
    token: str
    bytes: list[int]
    logprob: float | None
    top: list[TokenLogprob] = field(default_factory=list)

    @classmethod
    def from_wire(cls, fields: Mapping[str, Any]) -> TokenLogprob:
        return cls(
            fields["id"],
            fields["token"],
            fields["bytes"],
            fields["logprob"],
            [cls.from_wire(top) for top in fields["top"]],
        )


@dataclass(frozen=True, slots=True)
class Started:
    """Admitted: the prompt is tokenized, fits, and will be served by this instance."""

    kind: ClassVar[str] = "started"
    prompt_tokens: int
    instance_id: str
    digest: str
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Prompt:
    """The prompt's own text, ids and log probabilities: with `echo` or `prompt_logprobs` only.

    A prompt with log probabilities comes in pieces: the ids and log probabilities of each follow
    those of the one before, and the first has the text.
    """

    kind: ClassVar[str] = "prompt"
    ids: list[int]
    text: str
    logprobs: list[TokenLogprob] | None = None


@dataclass(frozen=True, slots=True)
class CallPiece:
    """What an answer adds to its tool call of that number: the name, once, then its arguments.

    `arguments` is a piece of a JSON text; together the pieces are one.
    """

    index: int
    name: str | None
    arguments: str


@dataclass(frozen=True, slots=True)
class Delta:
    """New tokens of one choice.

    Attributes:
        index: which choice, 0..n-1.
        pos: position of `ids[0]` in the choice's completion; the gateway requires no gap.
        ids: new token ids; may be empty when only held-back text or the finish comes.
        text: new text; may be empty while text is held back (stop strings, partial characters).
        logprobs: one an id, when asked for.
        finish_reason: set on the choice's last delta.
        stop_reason: the stop string or stop token id that ended it, when one did.
        reasoning: new text that the model thought before its answer.
        calls: pieces of tool calls.
        generated: tokens so far, of all choices, where their ids are not told before the end.
    """

    kind: ClassVar[str] = "delta"
    index: int
    pos: int
    ids: list[int]
    text: str
    logprobs: list[TokenLogprob] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    reasoning: str = ""
    calls: list[CallPiece] | None = None
    generated: int | None = None

    @property
    def is_plain(self) -> bool:
        """Nothing of the answer but tokens and text, as nearly all are."""
        return (
            self.finish_reason is None
            and self.logprobs is None
            and not self.reasoning
            and not self.calls
        )


@dataclass(frozen=True, slots=True)
class Done:
    """Terminal: all choices finished. The prompt counts once; completions sum over choices.

    `reasoning_tokens` are those of the completions that were no answer but what led to it.
    """

    kind: ClassVar[str] = "done"
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Failed:
    """Terminal: no answer, or none further."""

    kind: ClassVar[str] = "failed"
    code: str
    message: str
    param: str | None = None
    retry_after_s: float | None = None

    @classmethod
    def of(cls, error: TriremeError) -> Failed:
        return cls(**error.to_wire())

    def error(self) -> TriremeError:
        return TriremeError.from_wire(
            {
                "code": self.code,
                "message": self.message,
                "param": self.param,
                "retry_after_s": self.retry_after_s,
            }
        )


Event: TypeAlias = Started | Prompt | Delta | Done | Failed

_KINDS: dict[str, type[Started | Prompt | Delta | Done | Failed]] = {
    cls.kind: cls for cls in (Started, Prompt, Delta, Done, Failed)
}
_DEFAULTS: dict[type[Event], dict[str, Any]] = {
    cls: {one.name: one.default for one in dataclass_fields(cls)} for cls in _KINDS.values()
}
"""Field names in order; a field without a default has `dataclasses.MISSING`, which equals none."""


_COUNTS: Final = frozenset(
    "prompt_tokens completion_tokens cached_tokens reasoning_tokens generated".split()
)


def encode_event(event: Event) -> bytes:
    """One line of the wire, newline included; fields that have their default are left out."""
    if isinstance(event, Delta) and event.is_plain and event.generated is None:
        text = encode_basestring(event.text)
        head = f'{{"kind":"delta","index":{event.index},"pos":{event.pos},'
        return f'{head}"ids":{event.ids},"text":{text}}}\n'.encode()
    fields = {
        name: value
        for name, default in _DEFAULTS[type(event)].items()
        if (value := getattr(event, name)) != default
    }
    return to_json({"kind": event.kind, **fields}) + b"\n"


def _check_count(value: object) -> None:
    if type(value) is not int or not 0 <= value <= MAX_TOKENS:
        raise TypeError


def decode_event(line: bytes) -> Event:
    """Read one line.

    Raises:
        ValueError: when the line is no event.
    """
    fields = from_json(line)
    try:
        cls = _KINDS[fields.pop("kind")]
        if fields.get("logprobs") is not None:
            fields["logprobs"] = [TokenLogprob.from_wire(one) for one in fields["logprobs"]]
        if "calls" in fields:
            fields["calls"] = [CallPiece(**one) for one in fields["calls"]]
        if cls is not Delta or "generated" in fields:
            for name in _COUNTS & fields.keys():
                _check_count(fields[name])
        return cls(**fields)
    except (KeyError, TypeError, AttributeError) as error:
        # without the line: answers belong into no log
        reason = f"{type(error).__name__}, {len(line)} bytes"
        raise ValueError(f"not an event: {reason}") from None
