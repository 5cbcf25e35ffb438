"""The wire between the worker's HTTP process and its engine process: typed messages as JSON lines.

One step's outputs travel in one message; what may be large (scores of a prompt, vectors, all texts
of a beam search) in pieces, so that reading it holds up no event loop. No pickle, no tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import Field, TypeAdapter
from pydantic_core import to_json

from worker.engine.engine import JobFailed
from worker.engine.protocol import (
    EngineInfo,
    EngineLoad,
    Job,
    Pair,
    PromptOutput,
    StepOutput,
)

PIECE_NUMBERS: Final = 16_384
"""Numbers in one message; 16,384 are read in a few milliseconds."""


@dataclass(frozen=True, slots=True)
class Submit:
    job: Job
    kind: Literal["submit"] = "submit"


@dataclass(frozen=True, slots=True)
class UseTokenizer:
    described: str
    kind: Literal["use_tokenizer"] = "use_tokenizer"


@dataclass(frozen=True, slots=True)
class Abort:
    job_id: str
    index: int | None = None
    kind: Literal["abort"] = "abort"


@dataclass(frozen=True, slots=True)
class Embed:
    call_id: int
    inputs: list[list[int]]
    tenant: str = ""
    kind: Literal["embed"] = "embed"


@dataclass(frozen=True, slots=True)
class Score:
    """Answered as `Embed` is, with vectors of one number."""

    call_id: int
    pairs: list[Pair]
    tenant: str = ""
    kind: Literal["score"] = "score"


@dataclass(frozen=True, slots=True)
class AbortEmbed:
    call_id: int
    kind: Literal["abort_embed"] = "abort_embed"


@dataclass(frozen=True, slots=True)
class Progress:
    text: str
    kind: Literal["progress"] = "progress"


@dataclass(frozen=True, slots=True)
class Ready:
    info: EngineInfo
    load: EngineLoad
    kind: Literal["ready"] = "ready"


@dataclass(frozen=True, slots=True)
class LoadFailed:
    reason: str
    kind: Literal["load_failed"] = "load_failed"


@dataclass(frozen=True, slots=True)
class Step:
    """What a step yielded: lists of (job id, output), by kind of output, and the load after it."""

    load: EngineLoad
    tokens: list[tuple[str, StepOutput]] = field(default_factory=list)
    prompts: list[tuple[str, PromptOutput]] = field(default_factory=list)
    failures: list[tuple[str, JobFailed]] = field(default_factory=list)
    kind: Literal["step"] = "step"


@dataclass(frozen=True, slots=True)
class Embedded:
    """The answer to `Embed` or `Score`: vectors, in one or more messages, or an error: a text, and
    its code in the taxonomy."""

    call_id: int
    vectors: list[list[float]]
    error: str = ""
    code: str = "internal_error"
    more: bool = False
    kind: Literal["embedded"] = "embedded"


ToEngine: TypeAlias = Annotated[
    Submit | UseTokenizer | Abort | Embed | Score | AbortEmbed, Field(discriminator="kind")
]
FromEngine: TypeAlias = Annotated[
    Progress | Ready | LoadFailed | Step | Embedded, Field(discriminator="kind")
]

_TO_ENGINE: TypeAdapter[Submit | UseTokenizer | Abort | Embed | Score | AbortEmbed] = TypeAdapter(
    ToEngine
)
_FROM_ENGINE: TypeAdapter[Progress | Ready | LoadFailed | Step | Embedded] = TypeAdapter(FromEngine)


def encode(message: ToEngine | FromEngine) -> bytes:
    """One line, newline included."""
    return to_json(message) + b"\n"


def embedded(call_id: int, vectors: list[list[float]]) -> Iterator[Embedded]:
    """The vectors in messages of at most about `PIECE_NUMBERS` numbers."""
    size = max(1, PIECE_NUMBERS // max(1, len(vectors[0]))) if vectors else 1
    for at in range(0, max(1, len(vectors)), size):
        yield Embedded(call_id, vectors[at : at + size], more=at + size < len(vectors))


def numbers_of(output: StepOutput) -> int:
    """Numbers in an output, about."""
    return len(output.ids) + sum(1 + len(one.top) for one in output.logprobs or ())


def pieces(output: PromptOutput) -> Iterator[PromptOutput]:
    """The scores of a prompt in outputs of at most about `PIECE_NUMBERS` numbers."""
    widest = max((len(one.top) for one in output.logprobs), default=0)
    size = max(1, PIECE_NUMBERS // (1 + widest))
    for at in range(0, len(output.logprobs), size):
        yield PromptOutput(output.logprobs[at : at + size])


def decode_to_engine(line: bytes) -> Submit | UseTokenizer | Abort | Embed | Score | AbortEmbed:
    """Read a line that the HTTP process sent; `ValidationError` when it is none."""
    return _TO_ENGINE.validate_json(line)


def decode_from_engine(line: bytes) -> Progress | Ready | LoadFailed | Step | Embedded:
    """Read a line that the engine process sent; `ValidationError` when it is none."""
    return _FROM_ENGINE.validate_json(line)
