"""Orders to the ranks of a tensor-parallel engine arrive as sent; a rank's end is told of."""

from __future__ import annotations

import queue
import socket

import psutil
import pytest

from worker.engine.ranks import Kind, Order, Ranks, orders

STEP = Order(
    Kind.LOGITS,
    numbers=[5, 150_000, 7, 9],
    spans=[(0, 3, [4, 1]), (17, 1, [2, 0, 3]), (0, 1, [])],
    kept=[2, 3],
)


@pytest.mark.parametrize("order", [STEP, Order(Kind.ALLOCATE, [2]), Order(Kind.CLEAR)])
def test_an_order_arrives_as_it_was_sent(order: Order) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(order.encode() + STEP.encode())
        ours.shutdown(socket.SHUT_WR)
        first, second = orders(theirs)
    assert (first.kind, list(first.numbers)) == (order.kind, list(order.numbers))
    assert (first.spans, first.kept) == (list(order.spans), list(order.kept))
    assert second == STEP


def test_an_order_that_is_cut_off_is_not_carried_out() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(STEP.encode()[:-1])
        ours.shutdown(socket.SHUT_WR)
        assert list(orders(theirs)) == []


def test_a_rank_that_ends_is_told_of() -> None:
    """One that is told nonsense ends at once; leaving ends those that still run."""
    told: queue.SimpleQueue[str] = queue.SimpleQueue()
    with Ranks(2, 1, "nonsense", told.put):
        assert told.get(timeout=30) == "rank 1 of the engine ended (exit code 1)"
    children = psutil.Process().children()
    assert not [child for child in children if "worker.model.rank" in child.cmdline()]
