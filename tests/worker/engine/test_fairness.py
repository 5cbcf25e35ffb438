"""Fairness between tenants: the queue alone, under the scheduler, and in the simulated engine."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.worker.engine.hash_runner import HashRunner, core, outputs_of, settle
from worker.engine.blocks import BlockPool
from worker.engine.fairness import GENERATED_COST, MAX_TENANTS, FairQueue, _Lane
from worker.engine.grammar import Matcher
from worker.engine.protocol import Job, SequenceParams
from worker.engine.rates import PrefillBudget
from worker.engine.scheduler import Scheduler
from worker.engine.sequence import Sequence, sequences_of

PROMPT_LEN, OUTPUT_LEN = 8, 4


@dataclass(frozen=True)
class Item:
    tenant: str
    order: tuple[int, int]
    keeps_place: bool


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


def test_priority_orders_the_items_of_one_tenant_only() -> None:
    queue = filled(("a", 5), ("a", 0), ("b", 5), ("a", 0), ("a", -9))
    assert drained(queue) == ["a4", "b2", "a1", "a3", "a0"]


def test_what_was_put_aside_comes_when_it_is_asked_for_in_its_turn() -> None:
    queue = filled(("a", 0), ("b", 0), ("c", 0))
    queue.put_back("a", (0, 0), queue.pop(), aside=True)
    assert (len(queue), queue.num_ready, sorted(queue)) == (3, 2, ["a0", "b1", "c2"])
    queue.charge_prompt("b", 5)
    queue.charge_prompt("a", 1)
    assert queue.pop(with_aside=False) == "c2"
    assert [queue.pop(), queue.pop()] == ["a0", "b1"]
    queue.put_back("a", (0, 0), "a0", aside=True)
    with pytest.raises(IndexError):
        queue.pop(with_aside=False)


def test_one_that_arrives_keeps_the_counter_that_it_was_lifted_to() -> None:
    """Also when it is the one too many."""
    queue = filled(("waits", 0))
    queue.charge_prompt("waits", 1000)
    for number in range(MAX_TENANTS + 5):
        queue.add(f"t{number}", (0, number + 1), "x")
        assert queue.served(f"t{number}") == 1000


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abcde"),
            st.sampled_from("add pop back aside charge drop".split()),
            st.integers(-2, 2),
        ),
        max_size=150,
    )
)
def test_the_next_one_is_always_of_the_least_served(acts: list[tuple[str, str, int]]) -> None:
    """Against a model that looks at all of them, whatever happened before."""
    queue: FairQueue[Item] = FairQueue()
    ready: list[Item] = []
    aside: list[Item] = []
    for place, (tenant, act, number) in enumerate(acts):
        item = Item(tenant, (number, place), number == 2)
        if act in ("add", "back", "aside"):
            put = queue.add if act == "add" else queue.put_back
            extra = {"aside": True} if act == "aside" else {}
            put(item.tenant, item.order, item, keeps_place=item.keeps_place, **extra)
            (aside if act == "aside" else ready).append(item)
        elif act == "charge":
            queue.charge_prompt(tenant, place)
        elif act == "drop":
            gone = [one for one in (*ready, *aside) if one.order[0] == number]
            queue.discard({id(one) for one in gone})
            ready = [one for one in ready if one not in gone]
            aside = [one for one in aside if one not in gone]
        elif ready or (aside and number >= 0):
            found = queue.pop(with_aside=number >= 0)
            lanes = [ready, aside] if number >= 0 else [ready]
            heads = [
                min((one for one in lane if one.tenant == name), key=lambda one: one.order)
                for lane in lanes
                for name in {one.tenant for one in lane}
            ]
            assert found is min(
                heads, key=lambda one: (not one.keeps_place, queue.served(one.tenant), one.order)
            )
            (ready if found in ready else aside).remove(found)
        assert (len(queue), queue.num_ready) == (len(ready) + len(aside), len(ready))
    assert {id(one) for one in queue} == {id(one) for one in (*ready, *aside)}


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


def sequence(
    tenant: str,
    number: int,
    *,
    priority: int = 0,
    prompt_len: int = PROMPT_LEN,
    max_tokens: int = OUTPUT_LEN,
) -> Sequence:
    prompt = [1000 * number + place for place in range(prompt_len)]
    params = SequenceParams(max_tokens=max_tokens)
    job = Job(f"{tenant}{number}", prompt, params, tenant=tenant, priority=priority)
    return sequences_of(job, number, 0.0)[0]


def step(scheduler: Scheduler, prefill: PrefillBudget | None = None) -> list[Sequence]:
    """Compute a step; gives the sequences that were admitted in it."""
    batch = scheduler.schedule(prefill)
    scheduler.advance(batch)
    settle(scheduler, batch, [7 if item.samples else None for item in batch])
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


def test_what_a_sequence_is_charged_is_what_it_gives_out() -> None:
    scheduler = Scheduler(BlockPool(512, 4), max_running=8, max_batch_tokens=512)
    seq = sequence("a", 0)
    scheduler.add(seq)
    step(scheduler)
    batch = scheduler.schedule()
    scheduler.advance(batch)
    scheduler.restart([seq])  # what this step samples is lost
    while scheduler.has_work:
        step(scheduler)
    assert scheduler._waiting.served("a") == PROMPT_LEN + GENERATED_COST * OUTPUT_LEN


def test_no_tenant_gains_by_a_priority_over_others() -> None:
    scheduler = Scheduler(BlockPool(512, 4), max_running=4, max_batch_tokens=512)
    began = Counter[str]()
    number = 0
    for _ in range(100):
        while scheduler.num_waiting < 8:
            number += 1
            scheduler.add(sequence("greedy", number, priority=-1))
            scheduler.add(sequence("fair", number + 1000))
        began.update(seq.tenant for seq in step(scheduler))
    assert abs(began["greedy"] - began["fair"]) <= 8


def test_of_those_that_run_the_youngest_tenant_gives_up_its_least_urgent() -> None:
    scheduler = Scheduler(BlockPool(512, 4), max_running=8, max_batch_tokens=512)
    seqs = [
        sequence(tenant, number, priority=priority)
        for number, (tenant, priority) in enumerate((("a", 9), ("b", 5), ("b", 0), ("b", 0)))
    ]
    for seq in seqs:
        scheduler.add(seq)
    step(scheduler)
    assert [scheduler.preempt(scheduler.running) for _ in seqs] == [seqs[1], *seqs[:1:-1], seqs[0]]


@pytest.mark.parametrize("num_tenants", [1, 1000])
def test_a_step_looks_at_few_of_the_long_prompts_that_wait(
    num_tenants: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: Counter[str] = Counter()

    def counted(owner: type, name: str) -> None:
        wrapped = getattr(owner, name)

        def count(*args: Any) -> Any:
            looks[name] += 1
            return wrapped(*args)

        monkeypatch.setattr(owner, name, count)

    counted(BlockPool, "match_prefix")
    counted(_Lane, "_rank")
    scheduler = Scheduler(BlockPool(40_000, 16), max_running=256, max_batch_tokens=512)
    scheduler.add(sequence("decodes", 0, max_tokens=200))
    step(scheduler)
    for number in range(1, 1001):
        scheduler.add(sequence(f"{number % num_tenants}", number, prompt_len=400))
    bound = PrefillBudget(tokens=64, long=8)
    for _ in range(100):
        looks.clear()
        step(scheduler, bound)
        assert looks["match_prefix"] <= 20
        assert looks["_rank"] <= 150
    scheduler.add(sequence("short", 2000))
    assert "short" in [seq.tenant for seq in step(scheduler, bound)]


def test_what_ends_is_not_looked_for_among_those_that_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def discard(*_args: Any) -> None:
        raise AssertionError("looked for")

    monkeypatch.setattr(FairQueue, "discard", discard)
    of = core(HashRunner(), overlap=False)
    work = [Job(str(number), [number] * 3, SequenceParams(max_tokens=4)) for number in range(40)]
    for job in work:
        of.submit(job)
    assert outputs_of(of, []).keys() == {(job.job_id, 0) for job in work}


def test_tokens_that_a_grammar_forces_are_charged() -> None:
    class Forces(Matcher):
        def take(self, token_id: int, *, fast: bool) -> list[int]:
            return [5]

        def ends(self, token_id: int) -> bool:
            return False

        @property
        def is_over(self) -> bool:
            return False

    scheduler = Scheduler(BlockPool(512, 4), max_running=8, max_batch_tokens=512)
    seq = sequence("a", 0)
    seq.matcher = Forces(None, frozenset())
    scheduler.add(seq)
    steps = 0
    while scheduler.has_work:
        step(scheduler)
        steps += 1
    assert steps == OUTPUT_LEN / 2
    assert scheduler._waiting.served("a") == PROMPT_LEN + GENERATED_COST * OUTPUT_LEN
