"""Drafts take nothing from others: no blocks, none of a step's tokens."""

from __future__ import annotations

import pytest

from tests.worker.engine.hash_runner import settle
from worker.engine.blocks import BlockPool
from worker.engine.protocol import Job, SequenceParams
from worker.engine.rates import PrefillBudget
from worker.engine.scheduler import Scheduler
from worker.engine.sequence import Sequence, sequences_of

BLOCK = 4


def sequence(name: str, prompt: list[int], arrival: int) -> Sequence:
    return sequences_of(Job(name, prompt, SequenceParams(max_tokens=100)), arrival, 0.0)[0]


def prefill(scheduler: Scheduler, seqs: list[Sequence]) -> None:
    """Compute all prompts in a step, and sample a token behind each."""
    for seq in seqs:
        scheduler.add(seq)
    batch = scheduler.schedule()
    scheduler.advance(batch)
    settle(scheduler, batch, [20] * len(seqs))


@pytest.mark.parametrize("drafted", [False, True])
def test_nobody_is_preempted_for_drafts(drafted: bool) -> None:
    """A long prompt was admitted as all of its blocks were free: one draft must not take them."""
    scheduler = Scheduler(BlockPool(13, BLOCK), max_running=4, max_batch_tokens=64)
    short, long = sequence("short", list(range(6)), 0), sequence("long", list(range(50, 85)), 1)
    prefill(scheduler, [short])
    scheduler.add(long)
    for number in range(9):
        drafts = {id(short): list(range(16))} if drafted and number == 0 else {}
        batch = scheduler.schedule(PrefillBudget(tokens=4, long=4), drafts)
        scheduler.advance(batch)
        settle(scheduler, batch, [1 if item.samples else None for item in batch])
    assert scheduler.preemptions == 0
    assert long.num_computed == 35


def test_kept_tokens_publish_their_blocks_while_a_text_goes_on() -> None:
    """Not only when it takes another step, nor only at its end."""
    scheduler = Scheduler(BlockPool(12, BLOCK), max_running=4, max_batch_tokens=64)
    seq = sequence("a", list(range(BLOCK + 1)), 0)
    prefill(scheduler, [seq])
    [item] = scheduler.schedule(None, {id(seq): [21, 22, 23]})
    assert item.num_new == 4
    scheduler.advance([item])
    scheduler.resolve(item, 21, [22, 23, 24])
    assert seq.num_computed == BLOCK + 5
    assert seq.num_hashed == 2


def test_drafts_keep_to_the_tokens_of_a_step() -> None:
    scheduler = Scheduler(BlockPool(40, BLOCK), max_running=4, max_batch_tokens=6)
    seqs = [sequence(str(number), [number], number) for number in range(3)]
    prefill(scheduler, seqs)
    batch = scheduler.schedule(None, {id(seq): [1, 2] for seq in seqs})
    assert [len(item.draft) for item in batch] == [2, 1, 0]


def test_a_block_stays_free_for_each_that_runs() -> None:
    pool = BlockPool(5, BLOCK)
    scheduler = Scheduler(pool, max_running=4, max_batch_tokens=64)
    seqs = [sequence(str(number), [number] * 3, number) for number in range(2)]
    prefill(scheduler, seqs)
    found = scheduler.schedule(None, {id(seq): [1, 2] for seq in seqs})
    # three are free: the first may take one of them, the second none
    assert [len(item.draft) for item in found] == [2, 0]
    assert pool.num_free == 2
