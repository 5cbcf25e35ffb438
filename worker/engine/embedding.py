"""Embedding calls in the engine process: cut into batches, so that generation goes on between."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

BATCH_TOKENS: Final = 2048

Vectors: TypeAlias = list[list[float]]


@dataclass(slots=True)
class _Call:
    call_id: int
    inputs: list[list[int]]
    vectors: Vectors = field(default_factory=list)


class EmbedQueue:
    """Embedding calls under way, first come, first served.

    Args:
        embed: computes one batch of inputs.
    """

    def __init__(self, embed: Callable[[list[list[int]]], Vectors]) -> None:
        self._embed = embed
        self._calls: deque[_Call] = deque()
        self.batches = 0

    def __bool__(self) -> bool:
        return bool(self._calls)

    def add(self, call_id: int, inputs: list[list[int]]) -> None:
        """Queue a call."""
        self._calls.append(_Call(call_id, inputs))

    def abort(self, call_id: int) -> None:
        """Forget a call; an unknown one is no error."""
        self._calls = deque(call for call in self._calls if call.call_id != call_id)

    def step(self) -> tuple[int, Vectors | Exception] | None:
        """Compute the next batch; gives (call, vectors or what went wrong) once a call ends."""
        call = self._calls[0]
        first = len(call.vectors)
        last, tokens = first, 0
        while last < len(call.inputs) and (
            last == first or tokens + len(call.inputs[last]) <= BATCH_TOKENS
        ):
            tokens += len(call.inputs[last])
            last += 1
        self.batches += 1
        try:
            call.vectors += self._embed(call.inputs[first:last])
        except Exception as error:
            self._calls.popleft()
            return call.call_id, error
        if last < len(call.inputs):
            return None
        self._calls.popleft()
        return call.call_id, call.vectors
