"""What passes between the engine's core and the model behind it: a step, and what it gave."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace
from typing import Protocol

from worker.engine.beams import Candidates
from worker.engine.protocol import RawLogprob
from worker.engine.scheduler import Scheduled


@dataclass(frozen=True, slots=True)
class RowResult:
    """What the model gave for one batch entry.

    Attributes:
        token_id: the sampled token, None when the entry ends inside its prefill.
        logprob: of that token, when asked for.
        prompt_logprobs: of the prompt tokens that follow the computed ones, when asked for.
        finite: False when the row's logits were not finite: the sequence fails alone.
        late: whether a step launched meanwhile went on from another token than `token_id`, so that
            what it computed for the sequence must be computed again.
        candidates: the next tokens of a beam, in place of a sampled one.
        more: the tokens behind `token_id`, as far as the entry's draft was right.
    """

    token_id: int | None = None
    logprob: RawLogprob | None = None
    prompt_logprobs: SequenceOf[RawLogprob] = ()
    finite: bool = True
    late: bool = False
    candidates: Candidates | None = None
    more: SequenceOf[RowResult] = ()


def kept_of(draft: SequenceOf[int], found: SequenceOf[RowResult]) -> RowResult:
    """What an entry with a draft gave.

    Args:
        draft: drafted tokens.
        found: what was sampled before the first of them, and behind each.
    """
    if not draft:
        return found[0]
    num = 0
    while num < len(draft) and found[num].token_id == draft[num] and found[num + 1].finite:
        num += 1
    return replace(found[0], more=tuple(found[1 : num + 1]))


class Runner(Protocol):
    """The model behind the engine.

    Its methods raise `OutOfMemory`, `EngineBroken`, or what they like; `EngineCore` says what then.
    """

    def run(self, batch: SequenceOf[Scheduled]) -> list[RowResult]:
        """Compute a step; one result a batch entry."""

    def check(self) -> None:
        """Run the model over a text that is known to work; raises when it does not any more."""

    def clear(self, blocks: list[int]) -> None:
        """Zero the content of blocks, behind all steps launched so far."""

    def copy(self, pairs: SequenceOf[tuple[int, int]]) -> None:
        """Copy the content of the first block of each pair to the second, behind all steps
        launched so far."""


class Pending(Protocol):
    """A step under way."""

    def results(self) -> list[RowResult]:
        """Wait for it; one result a batch entry."""


class Launcher(Runner, Protocol):
    """A runner that need not be waited for."""

    def launch(self, batch: SequenceOf[Scheduled]) -> Pending:
        """Begin a step behind those launched before.

        A `PENDING` token in it is what the step launched last samples for the same sequence.
        """
