"""Embedding calls are cut into batches and answered in order."""

from __future__ import annotations

from worker.engine.embedding import BATCH_TOKENS, EmbedQueue


def lengths(inputs: list[list[int]]) -> list[list[float]]:
    return [[float(len(one))] for one in inputs]


def test_a_call_is_cut_into_batches_and_answered_whole() -> None:
    seen: list[int] = []

    def embed(inputs: list[list[int]]) -> list[list[float]]:
        seen.append(len(inputs))
        return lengths(inputs)

    queue = EmbedQueue(embed)
    inputs = [[1] * (BATCH_TOKENS // 2), [1] * (BATCH_TOKENS // 2), [1] * 3, [1] * BATCH_TOKENS * 2]
    queue.add(7, inputs)
    assert queue.step() is None
    assert queue.step() is None
    assert queue.step() == (7, lengths(inputs))
    assert seen == [2, 1, 1]
    assert not queue
    assert queue.batches == 3


def test_a_failed_call_ends_alone() -> None:
    def embed(inputs: list[list[int]]) -> list[list[float]]:
        if inputs[0] == [0]:
            raise MemoryError
        return lengths(inputs)

    queue = EmbedQueue(embed)
    queue.add(1, [[0]])
    queue.add(2, [[5]])
    ended = queue.step()
    assert ended is not None
    assert isinstance(ended[1], MemoryError)
    assert queue.step() == (2, [[1.0]])


def test_an_aborted_call_is_forgotten() -> None:
    queue = EmbedQueue(lengths)
    queue.add(1, [[5]])
    queue.add(2, [[5, 5]])
    queue.abort(1)
    queue.abort(99)
    assert queue.step() == (2, [[2.0]])
