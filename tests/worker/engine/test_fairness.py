"""Fairness between tenants: the queue alone, under the scheduler, and in the simulated engine."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.engine.blocks import BlockPool
from worker.engine.fairness import MAX_TENANTS, FairQueue
from worker.engine.protocol import Job, SequenceParams
from worker.engine.scheduler import Scheduler
from worker.engine.sequence import Sequence, sequences_of

PROMPT_LEN, OUTPUT_LEN = 8, 4


def filled(*items: tuple[str, int]) -> FairQueue[str]:
    """Items of (tenant, priority), named by tenant and place."""
    queue: FairQueue[str] = FairQueue()
    for place, (tenant, priority) in enumerate(items):
        queue.add(tenant, (priority, place), f"{tenant}{place}")
    return queue


def drained(queue: FairQueue[str], cost: int = 10) -> list[str]:
    """All items in turn, each charged so much."""
    found = []
    while len(queue):
        found.append(queue.pop())
        queue.charge_prompt(found[-1][0], cost)
    return found


def test_tenants_take_turns_and_each_keeps_its_order() -> None:
    queue = filled(*[("a", 0)] * 4, *[("b", 0)] * 2)
    assert drained(queue) == ["a0", "b4", "a1", "b5", "a2", "a3"]
    with pytest.raises(IndexError):
        queue.pop()


def test_priority_comes_before_fairness() -> None:
    assert drained(filled(("a", 5), ("a", 0), ("b", 5), ("a", 0))) == ["a1", "a3", "b2", "a0"]


def test_generated_tokens_cost_twice_as_much() -> None:
    queue = filled(*[("a", 0)] * 2, *[("b", 0)] * 3)
    queue.charge_generated("a", 10)
    queue.charge_prompt("b", 5)
    assert (queue.served("a"), queue.served("b")) == (20, 5)
    assert drained(queue) == ["b2", "b3", "a0", "b4", "a1"]


def test_who_comes_back_is_lifted_to_the_least_served_of_those_who_wait() -> None:
    queue = filled(("a", 0), ("b", 0))
    queue.charge_prompt("a", 1000)
    queue.charge_prompt("b", 700)
    queue.add("c", (0, 9), "c9")
    assert queue.served("c") == 700
    assert drained(queue, 400) == ["b1", "c9", "a0"]


def test_into_an_empty_queue_one_is_lifted_to_the_last_that_was_served() -> None:
    queue = filled(("a", 0))
    queue.charge_prompt(queue.pop()[0], 500)
    queue.add("b", (0, 1), "b1")
    assert queue.served("b") == 500


def test_what_is_put_back_is_not_lifted() -> None:
    queue = filled(("a", 0), ("b", 0))
    queue.charge_prompt("b", 50)
    assert queue.pop() == "a0"
    queue.put_back("a", (0, 0), "a0")
    assert queue.served("a") == 0
    assert drained(queue) == ["a0", "b1"]


def test_what_was_taken_before_keeps_its_place() -> None:
    queue = filled(("b", 0))
    queue.charge_prompt("a", 1000)
    queue.add("a", (0, 7), "a7", keeps_place=True)
    assert drained(queue) == ["a7", "b0"]


def test_items_are_taken_out_by_identity() -> None:
    queue: FairQueue[list[int]] = FairQueue()
    items: list[list[int]] = [[1], [1], [2]]
    for place, item in enumerate(items):
        queue.add("a" if place < 2 else "b", (0, place), item)
    queue.discard({id(items[0]), id(items[2])})
    assert len(queue) == 1
    assert next(iter(queue)) is items[1]
    assert queue.pop() is items[1]


def test_tenants_that_are_gone_are_forgotten_in_the_end() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.add("stays", (0, 0), "x")
    for number in range(3 * MAX_TENANTS):
        queue.add(str(number), (0, 1), "y")
        queue.pop()
        queue.charge_prompt(str(number), 1)
    assert len(queue._served) <= MAX_TENANTS + 1
    queue.put_back("stays", (0, 0), "x")


COSTS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 100)), min_size=30, max_size=120)


@given(COSTS)
def test_those_who_wait_all_the_time_are_served_alike(costs: list[tuple[str, int]]) -> None:
    """While two wait, what they were served differs by two of the largest at most (theorem 4.4 of
    the paper)."""
    queue: FairQueue[tuple[str, int]] = FairQueue()
    for place, (tenant, cost) in enumerate(costs):
        queue.add(tenant, (0, place), (tenant, cost))
    left, served = Counter(tenant for tenant, _ in costs), Counter[str]()
    while len(queue):
        tenant, cost = queue.pop()
        queue.charge_prompt(tenant, cost)
        served[tenant] += cost
        left[tenant] -= 1
        waiting = [one for one in left if left[one]]
        if len(waiting) > 1 and all(served[one] for one in waiting):
            spread = [served[one] for one in waiting]
            assert max(spread) - min(spread) <= 2 * 100


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 50)), max_size=40))
def test_with_one_tenant_the_order_is_that_of_arrival(items: list[tuple[int, int]]) -> None:
    queue = filled(*(("a", priority) for priority, _ in items))
    order = sorted(range(len(items)), key=lambda place: (items[place][0], place))
    assert drained(queue) == [f"a{place}" for place in order]


# ---- under the scheduler ------------------------------------------------------------------------


def sequence(tenant: str, number: int) -> Sequence:
    prompt = [1000 * number + place for place in range(PROMPT_LEN)]
    params = SequenceParams(max_tokens=OUTPUT_LEN)
    job = Job(f"{tenant}{number}", prompt, params, tenant=tenant)
    return sequences_of(job, number, 0.0)[0]


def step(scheduler: Scheduler) -> list[Sequence]:
    """Compute a step; gives the sequences that were admitted in it."""
    batch = scheduler.schedule()
    scheduler.advance(batch)
    scheduler.resolve(batch, [7 if item.samples else None for item in batch])
    return [item.seq for item in batch if item.start == 0]


def test_a_flood_of_one_key_does_not_keep_another_waiting() -> None:
    scheduler = Scheduler(BlockPool(512, 4), max_running=8, max_batch_tokens=512)
    for number in range(200):
        scheduler.add(sequence("a", number))
    for _ in range(3):
        step(scheduler)
    for number in range(200, 204):
        scheduler.add(sequence("b", number))
    began: list[str] = []
    while scheduler.has_work:
        began += [seq.tenant for seq in step(scheduler)]
    assert began.index("b") <= 1
    assert [place for place, tenant in enumerate(began) if tenant == "b"][-1] <= 9
    assert Counter(began) == {"a": 192, "b": 4}


def test_a_preempted_sequence_goes_on_before_those_of_others() -> None:
    scheduler = Scheduler(BlockPool(5, 4), max_running=4, max_batch_tokens=64)
    seqs = [sequence("a", 0), sequence("a", 1), sequence("b", 2)]
    for seq in seqs[:2]:
        scheduler.add(seq)
    step(scheduler)
    scheduler.add(seqs[2])
    ended: list[str] = []
    while scheduler.has_work:
        step(scheduler)
        ended += [one.job_id for one in seqs if one.finish and one.job_id not in ended]
    assert scheduler.preemptions >= 1
    assert ended == ["a0", "a1", "b2"]
