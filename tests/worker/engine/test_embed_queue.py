"""Embedding calls are computed in batches of like lengths, over all calls that wait."""

from __future__ import annotations

from typing import Any

from worker.engine.embedding import EmbedQueue


class Recorder:
    """Embeds an input as its length, and remembers the lengths of each batch."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def __call__(self, inputs: list[list[int]]) -> list[list[float]]:
        self.batches.append([len(one) for one in inputs])
        if [0] in inputs:
            raise MemoryError
        return lengths(inputs)


def lengths(inputs: list[list[int]]) -> list[list[float]]:
    return [[float(len(one))] for one in inputs]


def texts(*sizes: int) -> list[list[int]]:
    return [[7] * size for size in sizes]


def run(queue: EmbedQueue) -> dict[int, Any]:
    """What all calls come to, in the order in which they end."""
    ended: dict[int, Any] = {}
    while queue:
        ended.update(queue.step())
    return ended


def test_a_call_is_computed_in_padded_batches_and_answered_in_its_own_order() -> None:
    embed = Recorder()
    queue = EmbedQueue(embed, 100)
    queue.add(7, texts(3, 50, 200, 48, 2))
    assert run(queue) == {7: lengths(texts(3, 50, 200, 48, 2))}
    assert embed.batches == [[200], [50, 48], [3, 2]]
    assert queue.batches == 3


def test_inputs_of_several_calls_share_a_batch() -> None:
    embed = Recorder()
    queue = EmbedQueue(embed, 100)
    for call_id, size in enumerate((10, 12, 9, 11)):
        queue.add(call_id, texts(size))
    assert run(queue) == {call_id: [[float(n)]] for call_id, n in enumerate((10, 12, 9, 11))}
    assert embed.batches == [[12, 11, 10, 9]]


def test_a_small_call_does_not_wait_for_a_large_one() -> None:
    queue = EmbedQueue(Recorder(), 100)
    queue.add(1, texts(*[50] * 40))
    queue.add(2, texts(3))
    assert (len(queue), queue.tokens) == (2, 2003)
    assert queue.step() == []
    assert (len(queue), queue.tokens) == (2, 1903)
    assert queue.step() == [(2, [[3.0]])]
    assert list(run(queue)) == [1]
    assert (len(queue), queue.tokens) == (0, 0)


def test_tenants_take_turns_however_many_calls_one_has() -> None:
    queue = EmbedQueue(Recorder(), 100)
    for call_id in range(20):
        queue.add(call_id, texts(90), "a")
    queue.add(20, texts(60, 60), "b")
    queue.add(21, texts(4), "a")
    ended = list(run(queue))
    assert ended[:3] == [0, 20, 1]
    assert sorted(ended) == list(range(22))


def test_a_call_that_fails_fails_alone() -> None:
    queue = EmbedQueue(Recorder(), 100)
    queue.add(1, texts(2))
    queue.add(2, [[0], [7]])
    queue.add(3, texts(1))
    ended = run(queue)
    assert isinstance(ended[2], MemoryError)
    assert (ended[1], ended[3]) == ([[2.0]], [[1.0]])


def test_what_is_left_of_a_failed_call_is_not_computed() -> None:
    embed = Recorder()
    queue = EmbedQueue(embed, 1)
    queue.add(1, [[0], [7], [7]])
    assert isinstance(run(queue)[1], MemoryError)
    assert len(embed.batches) == 1


def test_an_aborted_call_is_forgotten() -> None:
    queue = EmbedQueue(lengths, 100)
    queue.add(1, texts(1))
    queue.add(2, texts(2))
    queue.abort(1)
    queue.abort(99)
    assert run(queue) == {2: [[2.0]]}
