from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace

import pytest

from protocol.errors import TriremeError
from worker.engine.protocol import Job, PromptOutput, SequenceParams, StepOutput
from worker.engine.sim import SimEngine, SimOptions
from worker.text.words import END_ID, FIRST_WORD_ID

PROMPT = list(b"hello")
UNTIL_END = SequenceParams(max_tokens=1000, stop_token_ids=(END_ID,), eos_token_ids=(END_ID,))


@asynccontextmanager
async def engine(**options: float) -> AsyncIterator[SimEngine]:
    made = SimEngine(SimOptions(**options))  # type: ignore[arg-type]
    await made.start()
    try:
        yield made
    finally:
        await made.close()


def job(params: SequenceParams = UNTIL_END, job_id: str = "a", **fields: object) -> Job:
    return Job(job_id, PROMPT, params, **fields)  # type: ignore[arg-type]


async def collect(sim: SimEngine, one: Job) -> list[StepOutput]:
    async with aclosing(sim.submit(one)) as batches:
        return [each async for batch in batches for each in batch if isinstance(each, StepOutput)]


def ids_of(outputs: list[StepOutput], index: int = 0) -> list[int]:
    return [token_id for out in outputs if out.index == index for token_id in out.ids]


async def test_a_completion_has_its_default_length_and_stops() -> None:
    async with engine(tokens=12) as sim:
        outputs = await collect(sim, job())
    assert [out.pos for out in outputs] == list(range(12))
    assert outputs[-1].finish == "stop"
    assert all(out.finish is None for out in outputs[:-1])
    assert all(token_id >= FIRST_WORD_ID for token_id in ids_of(outputs))


async def test_max_tokens_and_min_tokens_and_ignored_end() -> None:
    async with engine(tokens=12) as sim:
        short = await collect(sim, job(replace(UNTIL_END, max_tokens=5)))
        longer = await collect(sim, job(replace(UNTIL_END, min_tokens=20)))
        endless = await collect(sim, job(SequenceParams(max_tokens=30)))
    assert (len(short), short[-1].finish) == (5, "length")
    assert (len(longer), longer[-1].finish) == (20, "stop")
    assert (len(endless), endless[-1].finish) == (30, "length")


async def test_a_token_depends_on_prompt_seed_choice_and_position_alone() -> None:
    async with engine(max_running=4) as sim, engine(max_running=64, tokens=40) as other:
        base = ids_of(await collect(sim, job()))
        crowd = await asyncio.gather(
            *(collect(other, job(replace(UNTIL_END, seed=i), f"{i}")) for i in range(8))
        )
        assert ids_of(crowd[0])[:40] == base[:40]
        assert len({tuple(ids_of(outputs)) for outputs in crowd}) == 8
        several = await collect(sim, job(n=3))
        assert ids_of(several, 0) == base
        assert ids_of(several, 1) != base
        changed = await collect(sim, Job("b", list(b"hellp"), UNTIL_END))
        assert ids_of(changed) != base


async def test_greedy_choices_are_equal_whatever_the_seed() -> None:
    async with engine() as sim:
        outputs = await collect(sim, job(replace(UNTIL_END, temperature=0.0, seed=7), n=2))
        assert ids_of(outputs, 0) == ids_of(outputs, 1)
        other = await collect(sim, job(replace(UNTIL_END, temperature=0.0, seed=8)))
        assert ids_of(other) == ids_of(outputs, 0)


async def test_a_stop_token_ends_the_sequence() -> None:
    async with engine() as sim:
        third = ids_of(await collect(sim, job()))[2]
        outputs = await collect(sim, job(replace(UNTIL_END, stop_token_ids=(END_ID, third))))
    assert (len(outputs), outputs[-1].stop_token, outputs[-1].finish) == (3, third, "stop")


async def test_biases_of_a_hundred_force_and_ban() -> None:
    async with engine() as sim:
        forced = await collect(sim, job(replace(UNTIL_END, logit_bias=((300, 100.0),))))
        assert set(ids_of(forced)) == {300}
        banned = ids_of(await collect(sim, job()))[0]
        without = await collect(sim, job(replace(UNTIL_END, logit_bias=((banned, -100.0),))))
        assert banned not in ids_of(without)


async def test_logprobs_are_ordered_and_begin_with_the_chosen_token() -> None:
    async with engine(tokens=3) as sim:
        outputs = await collect(sim, job(replace(UNTIL_END, logprobs=4)))
    for out in outputs:
        assert out.logprobs is not None
        (raw,) = out.logprobs
        assert raw.top[0] == (out.ids[0], raw.logprob)
        values = [value for _, value in raw.top]
        assert values == sorted(values, reverse=True)
        assert len({token_id for token_id, _ in raw.top}) == 4


async def test_prompt_logprobs_come_first_and_have_none_for_the_first_token() -> None:
    async with engine(tokens=2) as sim:
        params = replace(UNTIL_END, prompt_logprobs=1)
        outputs = [out async for batch in sim.submit(job(params, n=2)) for out in batch]
    assert isinstance(outputs[0], PromptOutput)
    assert [raw.token_id for raw in outputs[0].logprobs] == PROMPT
    assert outputs[0].logprobs[0].logprob is None
    assert sum(isinstance(out, PromptOutput) for out in outputs) == 1


async def test_time_to_first_token_and_between_tokens() -> None:
    async with engine(tokens=4, ttft_s=0.1, itl_s=0.05) as sim:
        began = time.monotonic()
        stamps = []
        async for _ in sim.submit(job()):
            stamps.append(time.monotonic() - began)
    assert 0.1 <= stamps[0] < 0.2
    assert 0.25 <= stamps[-1] < 0.4


async def test_no_more_than_max_running_run_at_once_and_priority_goes_first() -> None:
    async with engine(tokens=2, itl_s=0.05, max_running=1) as sim:
        ended = []

        async def run(name: str, priority: int) -> None:
            await collect(sim, job(job_id=name, priority=priority))
            ended.append(name)

        first = asyncio.create_task(run("first", 0))
        await asyncio.sleep(0.005)
        late = asyncio.create_task(run("late", 5))
        urgent = asyncio.create_task(run("urgent", -5))
        await asyncio.sleep(0)
        load = sim.load()
        assert (load.running, load.waiting, load.waiting_tokens) == (1, 2, 2 * len(PROMPT))
        await asyncio.gather(first, late, urgent)
    assert ended == ["first", "urgent", "late"]


async def test_closing_the_generator_frees_running_and_waiting_sequences() -> None:
    async with engine(ttft_s=10, max_running=1) as sim:
        tasks = [asyncio.create_task(collect(sim, job(job_id=str(i), n=2))) for i in range(3)]
        await asyncio.sleep(0.02)
        assert sim.load().running == 1
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        load = sim.load()
        assert (load.running, load.waiting, load.busy) == (0, 0, False)


async def test_an_aborted_choice_gives_no_more_and_the_others_go_on() -> None:
    async with engine(tokens=20, itl_s=0.001) as sim:
        seen = []
        async for batch in sim.submit(job(n=2)):
            for out in batch:
                assert isinstance(out, StepOutput)
                seen.append((out.index, out.pos))
                if out.index == 0 and out.pos == 3:
                    sim.abort("a", 0)
    assert max(pos for index, pos in seen if index == 0) == 3
    assert max(pos for index, pos in seen if index == 1) == 19


async def test_expired_work_is_dropped_before_it_starts() -> None:
    async with engine(ttft_s=0.05, max_running=1) as sim:
        running = asyncio.create_task(collect(sim, job()))
        await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            await collect(sim, job(job_id="late", deadline_s=0.01))
        await running
        assert sim.load().running == 0


async def test_closing_the_engine_fails_what_runs() -> None:
    sim = SimEngine(SimOptions(ttft_s=10))
    await sim.start()
    running = asyncio.create_task(collect(sim, job()))
    await asyncio.sleep(0.01)
    await sim.close()
    with pytest.raises(TriremeError) as caught:
        await running
    assert caught.value.code == "engine_dead"
    assert await sim.wait_dead() == "closed"
    with pytest.raises(TriremeError):
        await collect(sim, job(job_id="b"))


async def test_the_step_counter_moves_while_busy() -> None:
    async with engine(tokens=5) as sim:
        assert not sim.load().busy
        before = sim.load().step
        await collect(sim, job())
        load = sim.load()
    assert load.step == before + 5
    assert (load.prompt_tokens, load.generation_tokens) == (len(PROMPT), 5)


async def test_a_reader_that_is_stuck_holds_its_own_tokens_back_only() -> None:
    endless = SequenceParams(max_tokens=5000)
    async with engine() as sim:
        stuck = sim.submit(job(endless, "stuck"))
        taken = len(await anext(stuck))
        outputs = await collect(sim, job(endless, "other"))
        assert len(outputs) == 5000
        assert sim.load().generation_tokens < 5000 + 500
        async with aclosing(stuck):
            rest = [each async for some in stuck for each in some if isinstance(each, StepOutput)]
    assert [output.pos for output in rest] == list(range(taken, 5000))


async def test_many_embeddings_leave_the_loop_to_others() -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async with engine() as sim:
        counting = asyncio.create_task(others())
        vectors = await sim.embed([[1, 2, 3] * 1000] * 50)
        counting.cancel()
    assert len(vectors) == 50
    assert turns >= 50


async def test_embeddings_are_deterministic_and_of_one_size() -> None:
    async with engine() as sim:
        first = await sim.embed([[1, 2, 3], [4]])
        assert first == await sim.embed([[1, 2, 3], [4]])
        assert first[0] != first[1]
        assert {len(vector) for vector in first} == {64}


async def test_hundreds_of_streams_keep_their_pace() -> None:
    async with engine(tokens=20, itl_s=0.02, max_running=400) as sim:
        began = time.monotonic()
        every = await asyncio.gather(*(collect(sim, job(job_id=str(i))) for i in range(300)))
        took = time.monotonic() - began
    assert all(len(outputs) == 20 for outputs in every)
    assert took < 2.0  # 0.38 s of it is the simulated time
