"""The interface of an engine, and the typed messages that cross it. No torch, no tokenizer.

An engine turns token ids into token ids. It knows nothing of text, templates, stop strings or
HTTP; `worker/service.py` does, on the other side of this interface.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

Finish: TypeAlias = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class SequenceParams:
    """How to choose the tokens of one job; validated and complete, nothing is optional here.

    Attributes:
        max_tokens: completion tokens, at least 1, prompt and completion within the context.
        seed: choice i draws its noise from (seed, i, position).
        stop_token_ids: tokens that end a sequence, end-of-sequence ids included unless ignored.
        eos_token_ids: tokens that are not to be chosen before `min_tokens`; with
            `stop_token_ids` that are suppressed too.
        logprobs: None is off; k gives the chosen token's log probability and the k best.
        prompt_logprobs: the same for the prompt's tokens.
        grammar: what the text must be, in llguidance's JSON; tokens that it leaves no choice about
            cost no step, unless their log probabilities are asked for.
        beam_width: 0 samples; from 2 on a beam search gives the job's `n` likeliest texts, at its
            end. length_penalty: a text's score is divided by its length to this power.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0
    stop_token_ids: tuple[int, ...] = ()
    eos_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    grammar: str | None = None
    beam_width: int = 0
    length_penalty: float = 1.0


@dataclass(frozen=True, slots=True)
class Job:
    """One prompt to complete `n` times.

    Attributes:
        job_id: unique in this process.
        deadline_s: seconds from submission after which nobody waits for it any more.
        cache_salt: seeds the prefix cache.
        tenant: who asks; tenants who wait are served fairly.
        priority: of the tenant's own, lower runs first; ties in order of arrival.
        begun: tokens that each choice has already, to go on from; None for a choice that has ended.
            Empty for a job from its beginning. Outputs begin behind these tokens.
    """

    job_id: str
    prompt_ids: list[int]
    params: SequenceParams
    n: int = 1
    priority: int = 0
    deadline_s: float | None = None
    cache_salt: str = ""
    tenant: str = ""
    begun: list[list[int] | None] = field(default_factory=list)

    @property
    def choices(self) -> list[tuple[int, list[int]]]:
        """The choices to generate: their index, and the tokens that they have."""
        if not self.begun:
            return [(index, []) for index in range(self.n)]
        return [(index, ids) for index, ids in enumerate(self.begun) if ids is not None]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two texts as one input of a cross-encoder.

    Attributes:
        ids: tokens of both, with the special ones between and around them.
        first: how many of them belong to the first text, where the model tells them apart.
    """

    ids: list[int]
    first: int

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class RawLogprob:
    """Log probability of one token under the raw distribution, and the best alternatives.

    `logprob` is None for the first token of a prompt. `top` holds (token id, logprob), best first.
    """

    token_id: int
    logprob: float | None
    top: list[tuple[int, float]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class PromptOutput:
    """Prompt log probabilities that were asked for: after the prefill, in one piece or more."""

    logprobs: list[RawLogprob]


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What one choice gained in a step.

    Attributes:
        index: which choice.
        pos: position of `ids[0]` in the completion.
        ids: new token ids, the stop token included when one ended it; none, without a finish, is
            a sign of life.
        logprobs: one an id, when asked for.
        finish: set on the last output of the choice.
        stop_token: the stop token id that ended it, also the last of `ids`.
    """

    index: int
    pos: int
    ids: list[int]
    logprobs: list[RawLogprob] | None = None
    finish: Finish | None = None
    stop_token: int | None = None
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine says of itself once it is ready.

    Attributes:
        engine: its name in `ENGINES`, or `encoder`.
        context_length: most tokens of prompt and completion together.
        eos_token_ids: tokens that end a text of this model.
        vocab_size: token ids are below it.
        capacity: sequences that run at once.
        kv_blocks, block_size: size of the KV pool; 0 where there is none.
        embeds: whether `embed` works. scores: whether `score` works: a cross-encoder.
        generates: whether `submit` works. grammars: whether it knows `SequenceParams.grammar`.
        scores_prompts: whether it knows `SequenceParams.prompt_logprobs`.
        beams: whether it knows `SequenceParams.beam_width`.
        dtype, device: as loaded, such as `bfloat16`, `cuda:0`.
        weights_digest: sha256 over what determines the answers: weights, dtype, engine.
    """

    engine: str
    context_length: int
    eos_token_ids: tuple[int, ...]
    vocab_size: int
    capacity: int
    kv_blocks: int = 0
    block_size: int = 0
    embeds: bool = True
    scores: bool = False
    generates: bool = True
    grammars: bool = False
    scores_prompts: bool = True
    beams: bool = False
    dtype: str = ""
    device: str = ""
    weights_digest: str = ""


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """An engine's load now.

    Attributes:
        running: sequences in the batch. waiting: sequences and embedding calls queued.
        waiting_tokens: their tokens.
        kv_free: share of KV blocks free. prefill_tps, decode_tps: recent tokens a second.
        step: counts steps. busy: whether there is work: a still `step` means trouble only then.
        preemptions, prompt_tokens, generation_tokens: totals since the start.
        out_of_memory: steps that found no memory, since the start.
        drafted_tokens, accepted_tokens: by prompt lookup, and kept of them, since the start.
    """

    running: int = 0
    waiting: int = 0
    waiting_tokens: int = 0
    kv_free: float = 1.0
    prefill_tps: float = 0.0
    decode_tps: float = 0.0
    step: int = 0
    busy: bool = False
    preemptions: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    out_of_memory: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0


class Engine(Protocol):
    """What every engine offers to the worker's HTTP process."""

    @property
    def info(self) -> EngineInfo:
        """Valid once `start` has returned."""

    @property
    def progress(self) -> str:
        """How far loading is, for people: `loading weights 40%`; empty once ready."""

    async def start(self) -> None:
        """Load and warm up.

        Raises:
            ModelLoadError: with a one-line reason; the worker exits with code 3.
        """

    def use_tokenizer(self, described: str) -> None:
        """The vocabulary for grammars: a `tokenizer.json`, as text. Before any job with one."""

    async def wait_dead(self) -> str:
        """Returns a reason when the engine can serve no more (its process ended)."""

    def submit(
        self, job: Job, hold_s: float = 0.0
    ) -> AsyncGenerator[list[PromptOutput | StepOutput], None]:
        """Outputs of a job, as they come together, until each choice has its `finish`.

        Closing the generator aborts what still runs. Raises `TriremeError` when the job fails,
        `TimeoutError` when its deadline has passed.

        Args:
            hold_s: seconds that outputs may be held back to come together.
        """

    def abort(self, job_id: str, index: int) -> None:
        """End one choice early (its text met a stop string); no further output comes for it."""

    async def embed(self, inputs: list[list[int]], tenant: str = "") -> list[list[float]]:
        """Pooled states of the last layer, float32, one vector an input, not normalised.

        Each input has 1..context_length tokens. Tenants whose calls wait are served fairly.
        """

    async def score(self, pairs: list[Pair], tenant: str = "") -> list[float]:
        """One number a pair of 1..context_length tokens: a cross-encoder's opinion of it."""

    def load(self) -> EngineLoad:
        """The load as last reported."""

    async def close(self) -> None:
        """Stop at once; running jobs fail with `engine_dead`."""


class ModelLoadError(Exception):
    """The model cannot be loaded; the message is one line for a person."""
