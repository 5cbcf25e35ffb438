"""Embedding calls in the engine process: inputs of all that wait, in batches of like lengths.

Between two batches generation goes on.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from typing import Any, TypeAlias

from worker.engine.fairness import FairQueue
from worker.engine.faults import EngineBroken, OutOfMemory

Vectors: TypeAlias = list[list[float]]


@dataclass(eq=False, slots=True)
class _Call:
    """A call under way: a vector for each input, empty while it is not computed."""

    call_id: int
    tenant: str
    vectors: Vectors
    left: int


@dataclass(frozen=True, slots=True)
class _Input:
    tokens: Sized
    call: _Call
    at: int


class EmbedQueue:
    """Embedding calls under way.

    A batch is padded to its longest input, so it holds inputs of like lengths, from all calls. It
    is made around an input of the tenant that was served least, and of each of its calls in turn,
    so that a small call does not wait for a large one.

    Args:
        embed: computes one batch of inputs.
        batch_tokens: most tokens of a batch, padding included; a single input may have more.
    """

    def __init__(self, embed: Callable[[list[Any]], Vectors], batch_tokens: int) -> None:
        self._embed = embed
        self._batch_tokens = batch_tokens
        self._calls: FairQueue[_Call] = FairQueue()
        self._turns = itertools.count()
        self._waiting: list[_Input] = []  # the longest first
        self.batches = 0

    def __len__(self) -> int:
        return len(self._calls)

    @property
    def tokens(self) -> int:
        """Of all inputs that are still to be computed."""
        return sum(len(one.tokens) for one in self._waiting)

    def add(self, call_id: int, inputs: Sequence[Sized], tenant: str = "") -> None:
        """Queue a call of at least one input."""
        call = _Call(call_id, tenant, [[] for _ in inputs], len(inputs))
        self._calls.add(tenant, (next(self._turns),), call)
        self._waiting += [_Input(tokens, call, at) for at, tokens in enumerate(inputs)]
        self._waiting.sort(key=lambda one: -len(one.tokens))

    def abort(self, call_id: int) -> None:
        """Forget a call; an unknown one is no error."""
        self._calls.discard({id(call) for call in self._calls if call.call_id == call_id})
        self._waiting = [one for one in self._waiting if one.call.call_id != call_id]

    def step(self) -> list[tuple[int, Vectors | Exception]]:
        """Compute the next batch; gives (call, vectors or what went wrong) of calls that end."""
        turn = self._calls.pop()
        self._calls.put_back(turn.tenant, (next(self._turns),), turn)
        batch = self._next_batch(turn)
        for one in batch:
            self._calls.charge_prompt(one.call.tenant, len(one.tokens))
        self.batches += 1
        ended: list[tuple[int, Vectors | Exception]] = []
        for call, error in self._compute(batch):
            self.abort(call.call_id)
            ended.append((call.call_id, error))
        for call in dict.fromkeys(one.call for one in batch):
            if not call.left:
                self.abort(call.call_id)
                ended.append((call.call_id, call.vectors))
        return ended

    def _next_batch(self, turn: _Call) -> list[_Input]:
        """The longest input of the call, what follows it in length, and while there is room what
        is longer."""
        waiting, budget = self._waiting, self._batch_tokens
        start = next(i for i, one in enumerate(waiting) if one.call is turn)
        end = min(len(waiting), start + max(1, budget // max(1, len(waiting[start].tokens))))
        while start and (end - start + 1) * len(waiting[start - 1].tokens) <= budget:
            start -= 1
        batch = waiting[start:end]
        del waiting[start:end]
        return batch

    def _compute(self, batch: list[_Input]) -> list[tuple[_Call, Exception]]:
        """Fill in the batch's vectors; the calls that failed, as one must not fail others. What
        finds no memory is computed in halves."""
        try:
            vectors = self._embed([one.tokens for one in batch])
        except EngineBroken:
            raise
        except Exception as error:
            calls = list(dict.fromkeys(one.call for one in batch))
            if isinstance(error, OutOfMemory) and len(batch) > 1:
                half = len(batch) // 2
                parts = [batch[:half], batch[half:]]
            elif len(calls) == 1:
                return [(calls[0], error)]
            else:
                parts = [[one for one in batch if one.call is call] for call in calls]
        else:
            self._fill(batch, vectors)
            return []
        failed: dict[int, tuple[_Call, Exception]] = {}
        for part in parts:
            left = [one for one in part if one.call.call_id not in failed]
            if left:
                failed.update((call.call_id, (call, why)) for call, why in self._compute(left))
        return list(failed.values())

    def _fill(self, batch: list[_Input], vectors: Vectors) -> None:
        for one, vector in zip(batch, vectors, strict=True):
            one.call.vectors[one.at] = vector
            one.call.left -= 1
