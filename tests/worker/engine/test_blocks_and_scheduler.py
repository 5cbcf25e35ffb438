"""The paged engine's bookkeeping: blocks, prefix sharing, batches, preemption. No model."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worker.engine.hash_runner import settle
from worker.engine.blocks import BlockPool
from worker.engine.protocol import Job, RawLogprob, SequenceParams
from worker.engine.rates import PrefillBudget
from worker.engine.scheduler import MAX_SCORED_TOKENS, Scheduled, Scheduler
from worker.engine.sequence import Sequence, sequences_of

SIZE = 4


def make(
    prompt: list[int],
    *,
    n: int = 1,
    arrival: int = 0,
    salt: str = "",
    priority: int = 0,
    **params: Any,
) -> list[Sequence]:
    values: dict[str, Any] = {"max_tokens": 100, **params}
    job = Job("j", prompt, SequenceParams(**values), n=n, priority=priority, cache_salt=salt)
    return sequences_of(job, arrival, 0.0)


def one(prompt: list[int], **rest: Any) -> Sequence:
    return make(prompt, **rest)[0]


def scheduler(num_blocks: int = 64, max_running: int = 8, budget: int = 100) -> Scheduler:
    return Scheduler(BlockPool(num_blocks, SIZE), max_running=max_running, max_batch_tokens=budget)


def shape(batch: list[Scheduled]) -> list[tuple[int, int]]:
    """(order of arrival, new tokens) of a batch."""
    return [(item.seq.arrival, item.num_new) for item in batch]


def step(of: Scheduler) -> list[tuple[int, int]]:
    """Schedule and update with token 7 for whoever samples."""
    batch = of.schedule()
    seen = shape(batch)
    of.advance(batch)
    settle(of, batch, [7 if item.samples else None for item in batch])
    return seen


def test_a_prefix_is_shared_by_whole_blocks_and_leaves_one_token_to_compute() -> None:
    pool = BlockPool(16, SIZE)
    first = one([1, 2, 3, 4, 5, 6, 7, 8])
    pool.grow(first, 8)
    first.num_computed = 8
    pool.publish(first)
    same, longer, other = (
        one([1, 2, 3, 4, 5, 6, 7, 8]),
        one([1, 2, 3, 4, 5, 6, 7, 8, 9]),
        one([2, 2, 3, 4, 5]),
    )
    assert pool.match_prefix(same) == 4
    assert pool.match_prefix(longer) == 8
    assert pool.match_prefix(other) == 0
    assert longer.block_table == first.block_table


def test_prompts_with_scores_share_a_bound_of_their_own() -> None:
    """However large a step may be: each of their tokens needs a row of logits."""
    bound = MAX_SCORED_TOKENS
    of = scheduler(num_blocks=2048, budget=8192)
    of.add(one([1] * (bound + 10), arrival=0, prompt_logprobs=1))
    of.add(one([2] * bound, arrival=1, prompt_logprobs=0))
    of.add(one([3] * 3 * bound, arrival=2))
    assert step(of) == [(0, bound), (2, 3 * bound)]
    assert step(of) == [(2, 1), (0, 10), (1, bound - 10)]
    [scored, *_others] = of.running
    scored.prompt_logprobs = [RawLogprob(1, None)] * (bound + 10)
    assert step(of) == [(0, 1), (2, 1), (1, 10)]


def test_a_prefix_is_not_shared_between_salts() -> None:
    pool = BlockPool(16, SIZE)
    mine = one([1, 2, 3, 4, 5], salt="a")
    pool.grow(mine, 5)
    mine.num_computed = 5
    pool.publish(mine)
    assert pool.match_prefix(one([1, 2, 3, 4, 5], salt="b")) == 0
    assert pool.match_prefix(one([1, 2, 3, 4, 5], salt="a")) == 4


def test_released_content_is_found_until_its_block_is_taken() -> None:
    pool = BlockPool(2, SIZE)
    first = one([1, 2, 3, 4, 5])
    pool.grow(first, 5)
    first.num_computed = 5
    pool.publish(first)
    pool.release(first)
    assert pool.num_free == 2
    again = one([1, 2, 3, 4, 5])
    assert pool.match_prefix(again) == 4
    pool.release(again)
    taker = one([9] * 8)
    pool.grow(taker, 8)
    pool.release(taker)
    assert pool.match_prefix(one([1, 2, 3, 4, 5])) == 0


def test_discarded_content_is_never_found() -> None:
    pool = BlockPool(4, SIZE)
    bad = one([1, 2, 3, 4, 5])
    pool.grow(bad, 5)
    bad.num_computed = 5
    pool.publish(bad)
    pool.discard(bad)
    assert pool.num_free == 4
    assert pool.match_prefix(one([1, 2, 3, 4, 5])) == 0


def test_decodes_come_first_and_prefills_are_cut_to_what_is_left() -> None:
    of = scheduler(budget=10)
    of.add(one([1] * 3, arrival=1))
    assert step(of) == [(1, 3)]
    of.add(one([2] * 15, arrival=2))
    assert step(of) == [(1, 1), (2, 9)]
    assert step(of) == [(1, 1), (2, 6)]
    assert step(of) == [(1, 1), (2, 1)]


def test_long_prefills_beside_decodes_have_a_budget_of_their_own() -> None:
    bound = PrefillBudget(tokens=35, long=30)
    of = scheduler(budget=60)
    of.add(one([1] * 20, arrival=0))
    of.add(one([2] * 40, arrival=1))
    assert shape(of.schedule(bound)) == [(0, 20), (1, 40)]  # nobody decodes yet
    of = scheduler(budget=60)
    of.add(one([1] * 20, arrival=0))
    step(of)
    of.add(one([2] * 40, arrival=1))
    of.add(one([3] * 40, arrival=2))
    batch = of.schedule(bound)
    assert shape(batch) == [(0, 1), (1, 30)]
    of.advance(batch)
    settle(of, batch, [7, None])
    assert shape(of.schedule(bound)) == [(0, 1), (1, 10), (2, 20)]


def test_a_short_prompt_passes_long_ones() -> None:
    bound = PrefillBudget(tokens=20, long=6)
    of = scheduler()
    of.add(one([1] * 3, arrival=0))
    step(of)
    for arrival in (1, 2):
        of.add(one([arrival] * 40, arrival=arrival))
    of.add(one([3] * 10, arrival=3))
    of.add(one([4] * 10, arrival=4))
    batch = of.schedule(bound)
    assert shape(batch) == [(0, 1), (1, 6), (3, 10), (4, 4)]
    of.advance(batch)
    settle(of, batch, [7, None, 7, None])
    assert shape(of.schedule(bound)) == [(0, 1), (3, 1), (1, 6), (4, 6)]


def test_a_prompt_found_in_the_cache_is_short() -> None:
    bound = PrefillBudget(tokens=20, long=6)
    of = scheduler()
    of.add(one([1] * 40, arrival=0))
    step(of)
    of.add(one([2] * 40, arrival=1))
    of.add(one([1] * 40 + [5] * 8, arrival=2))
    assert shape(of.schedule(bound)) == [(0, 1), (1, 6), (2, 8)]


def test_nothing_passes_a_sequence_that_waits_for_blocks() -> None:
    of = scheduler(num_blocks=6)
    of.add(one([1] * 15, arrival=0))
    step(of)
    of.add(one([2] * 12, arrival=1))
    of.add(one([3] * 2, arrival=2))
    assert step(of) == [(0, 1)]


def test_a_lower_priority_number_is_admitted_first() -> None:
    of = scheduler(max_running=1)
    of.add(one([1], arrival=1, priority=1))
    of.add(one([1], arrival=2, priority=0))
    assert step(of) == [(2, 1)]


def test_the_youngest_is_preempted_and_comes_back_whole() -> None:
    of = scheduler(num_blocks=4)
    old, young = one([1] * 7, arrival=1), one([2] * 7, arrival=2)
    of.add(old)
    of.add(young)
    assert step(of) == [(1, 7), (2, 7)]
    assert step(of) == [(1, 1), (2, 1)]
    assert step(of) == [(1, 1)]
    assert of.preemptions == 1
    assert young.num_computed == 0
    assert young.num_output == 2
    of.remove([old])
    # its last block went to the older sequence, its first one still holds what it held
    assert step(of) == [(2, 5)]


def test_the_other_choices_wait_for_the_first_ones_prefill_and_share_it() -> None:
    of = scheduler(budget=8)
    seqs = make([1] * 13, n=3, arrival=1)
    for seq in seqs:
        of.add(seq)
    assert step(of) == [(1, 8)]
    assert step(of) == [(1, 5)]
    assert step(of) == [(1, 1), (1, 1), (1, 1)]
    assert [seq.num_cached for seq in seqs] == [0, 12, 12]


def test_many_choices_that_wait_for_the_first_do_not_hold_up_others() -> None:
    of = scheduler(num_blocks=256, max_running=64, budget=40)
    of.add(one([2, 3], arrival=0))
    step(of)
    for seq in make([1] * 200, n=40, arrival=1):
        of.add(seq)
    of.add(one([3] * 5, arrival=2))
    assert shape(of.schedule(PrefillBudget(tokens=20, long=8))) == [(0, 1), (1, 8), (2, 5)]


def test_finished_sequences_leave_and_their_blocks_are_free() -> None:
    of = scheduler(num_blocks=8)
    of.add(one([1] * 5, max_tokens=2))
    step(of)
    step(of)
    assert not of.has_work
    assert of._pool.num_free == 8


def test_minimum_length_outlasts_a_stop_token() -> None:
    seq = one([1], stop_token_ids=(7,), min_tokens=2)
    seq.append(7)
    assert seq.finish is None
    seq.append(7)
    assert seq.finish == "stop"


@given(seed=st.integers(0, 10_000))
@settings(max_examples=150, deadline=None)
def test_whatever_happens_blocks_are_conserved_and_everyone_finishes(seed: int) -> None:
    """Random jobs, sizes, aborts and budgets: no block is lost, shared wrongly or starved."""
    rng = random.Random(seed)
    pool = BlockPool(rng.randint(6, 20), SIZE)
    of = Scheduler(pool, max_running=rng.randint(1, 6), max_batch_tokens=rng.randint(1, 30))
    alive: list[Sequence] = []
    most = pool.num_blocks * SIZE
    for arrival in range(rng.randint(1, 12)):
        prompt = [rng.randint(1, 2) for _ in range(rng.randint(1, most // 2))]
        seqs = make(
            prompt,
            n=rng.randint(1, 3),
            arrival=arrival,
            max_tokens=rng.randint(1, most - len(prompt)),
        )
        alive += seqs
        for seq in seqs:
            of.add(seq)
    for _ in range(20_000):
        if rng.random() < 0.02 and alive:
            of.remove([alive.pop(rng.randrange(len(alive)))])
        if not of.has_work:
            break
        bound = PrefillBudget(tokens=rng.randint(1, 30), long=rng.randint(1, 10))
        batch = of.schedule(rng.choice([None, bound]))
        assert batch, "a step without progress"
        assert sum(item.num_new for item in batch) <= of._max_batch_tokens
        assert len({id(item.seq) for item in batch}) == len(batch)
        for item in batch:
            assert len(item.seq.block_table) >= pool.blocks_for(
                item.seq.num_computed + item.num_new
            )
        of.advance(batch)
        settle(of, batch, [rng.randint(1, 2) if item.samples else None for item in batch])
        held = {block for seq in of.running for block in seq.block_table}
        assert len(held) + pool.num_free == pool.num_blocks
    assert not of.has_work
    assert pool.num_free == pool.num_blocks
    assert not any(pool._refs)
