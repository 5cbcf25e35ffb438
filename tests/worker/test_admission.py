from __future__ import annotations

import asyncio

import pytest

from protocol.errors import TriremeError
from worker.admission import Admission, Ticket


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def admission(
    limit: int | None = None,
    *,
    capacity: int = 2,
    requests: int = 2,
    tokens: int = 100,
    clock: Clock | None = None,
) -> Admission:
    return Admission(
        limit=limit,
        capacity=capacity,
        max_queue_requests=requests,
        max_queue_tokens=tokens,
        clock=clock or Clock(),
    )


def test_capacity_and_queue_bound_the_requests() -> None:
    made = admission()
    for _ in range(4):
        made.enter(1)
    with pytest.raises(TriremeError) as caught:
        made.enter(1)
    assert caught.value.code == "overloaded"
    assert caught.value.retry_after_s is not None


def test_choices_count() -> None:
    made = admission()
    made.enter(1, sequences=4)
    with pytest.raises(TriremeError):
        made.enter(1)


def test_a_request_larger_than_all_bounds_may_run_alone() -> None:
    made = admission()
    made.enter(10_000, sequences=100)


def test_waiting_tokens_are_bounded_until_the_first_output() -> None:
    made = admission(capacity=10)
    first = made.enter(80)
    with pytest.raises(TriremeError):
        made.enter(30)
    first.first_output()
    made.enter(30)


def test_leaving_gives_everything_back() -> None:
    made = admission()
    for _ in range(50):
        with made.enter(90, sequences=4) as ticket:
            ticket.first_output()
    with pytest.raises(ValueError, match="x"), made.enter(90):
        raise ValueError("x")
    made.enter(100, sequences=4)


def test_retry_after_follows_the_measured_drain_rate() -> None:
    clock = Clock()
    made = admission(capacity=1, requests=3, clock=clock)
    for _ in range(20):  # 20 requests in the window of 10 s: one leaves each half second
        with made.enter(1):
            pass
    for _ in range(4):
        made.enter(1)
    with pytest.raises(TriremeError) as caught:
        made.enter(1)
    assert caught.value.retry_after_s == pytest.approx(1.5)


def test_a_full_queue_has_room_for_those_who_have_little_of_it() -> None:
    made = admission(capacity=2, requests=8)
    for _ in range(10):
        made.enter(1, tenant="flood")
    with pytest.raises(TriremeError):
        made.enter(1, tenant="flood")
    made.enter(1, tenant="other")
    made.enter(1, tenant="third")
    for tenant in ("flood", "other"):  # a quarter more, and not beyond
        with pytest.raises(TriremeError):
            made.enter(1, tenant=tenant)


async def test_tenants_take_turns_under_the_limit() -> None:
    made = admission(1, requests=20)
    order = []

    async def one(tenant: str) -> None:
        with made.enter(5, tenant=tenant) as ticket:
            await ticket.wait_turn()
            order.append(tenant)
            await asyncio.sleep(0)
            ticket.generated = 10

    await asyncio.gather(*(one(tenant) for tenant in "aaaaaabb"))
    assert "".join(order) == "ababaaaa"


async def test_without_a_limit_nobody_waits_here() -> None:
    made = admission(None)
    with made.enter(1) as ticket:
        await ticket.wait_turn()
        assert made.queued == 0


async def test_the_limit_bounds_what_runs_and_priority_goes_first() -> None:
    made = admission(1, requests=10)
    order = []

    async def one(name: str, priority: int) -> None:
        with made.enter(7, priority=priority) as ticket:
            await ticket.wait_turn()
            order.append(name)
            await asyncio.sleep(0.005)

    tasks = [asyncio.create_task(one(n, p)) for n, p in [("a", 0), ("b", 5), ("c", 5), ("d", 1)]]
    await asyncio.sleep(0)
    assert (made.queued, made.queued_tokens) == (3, 21)
    await asyncio.gather(*tasks)
    assert order == ["a", "d", "b", "c"]
    assert (made.queued, made.queued_tokens) == (0, 0)


async def test_one_that_gives_up_waiting_keeps_no_place() -> None:
    made = admission(1, requests=10)

    async def wait(ticket: Ticket) -> None:
        with ticket:
            await ticket.wait_turn()
            await asyncio.sleep(10)

    holder = asyncio.create_task(wait(made.enter(1)))
    waiter = asyncio.create_task(wait(made.enter(1)))
    await asyncio.sleep(0)
    assert made.queued == 1
    waiter.cancel()
    holder.cancel()
    await asyncio.gather(holder, waiter, return_exceptions=True)
    assert made.queued == 0
    with made.enter(1) as ticket:
        async with asyncio.timeout(1):
            await ticket.wait_turn()


async def test_one_that_is_called_and_cancelled_at_once_frees_its_turn() -> None:
    made = admission(1, requests=10)
    first = made.enter(1)
    await first.wait_turn()

    async def wait() -> None:
        with made.enter(1) as ticket:
            await ticket.wait_turn()

    waiter = asyncio.create_task(wait())
    await asyncio.sleep(0)
    with first:
        pass  # gives the turn to the waiter, which is cancelled before it runs
    waiter.cancel()
    await asyncio.gather(waiter, return_exceptions=True)
    with made.enter(1) as ticket:
        async with asyncio.timeout(1):
            await ticket.wait_turn()


def test_one_that_had_its_place_elsewhere_is_not_turned_away() -> None:
    made = admission()
    for _ in range(4):
        made.enter(1)
    with pytest.raises(TriremeError):
        made.enter(1)
    with made.enter(99, admitted=True), pytest.raises(TriremeError):
        made.enter(1)
