"""What a handover ends, and what it leaves alone."""

from __future__ import annotations

import asyncio

import pytest

from protocol.errors import TriremeError
from worker.handover import Handover, Wait


async def forever(wait: Wait) -> None:
    with wait:
        await asyncio.Event().wait()


async def code_of(task: asyncio.Task[None]) -> str:
    with pytest.raises(TriremeError) as caught:
        await asyncio.wait_for(task, 5)
    return caught.value.code


async def test_it_ends_what_waits_and_what_comes_later() -> None:
    handover = Handover()
    with handover.request(resumable=True) as wait:
        waiting = asyncio.create_task(forever(wait))
        await asyncio.sleep(0)
        handover.begin()
        assert await code_of(waiting) == "draining"
        assert await code_of(asyncio.create_task(forever(wait))) == "draining"
    with handover.request(resumable=True) as later:
        assert await code_of(asyncio.create_task(forever(later))) == "draining"


async def test_who_cannot_go_on_elsewhere_is_ended_only_with_everyone() -> None:
    handover = Handover()
    with handover.request(resumable=False) as wait:
        waiting = asyncio.create_task(forever(wait))
        await asyncio.sleep(0)
        handover.begin()
        await asyncio.sleep(0.01)
        assert not waiting.done()
        handover.begin(for_everyone=True)
        assert await code_of(waiting) == "draining"


async def test_a_request_that_sends_is_left_to_it_until_it_waits_again() -> None:
    handover, sending, sent = Handover(), asyncio.Event(), asyncio.Event()

    async def one() -> str:
        with handover.request(resumable=True) as wait:
            with wait:
                await asyncio.sleep(0)
            sending.set()
            await sent.wait()
            with pytest.raises(TriremeError), wait:
                await asyncio.Event().wait()
            await asyncio.sleep(0)  # nothing of the end is left in the task
            return "told"

    running = asyncio.create_task(one())
    await sending.wait()
    handover.begin()
    await asyncio.sleep(0.01)
    sent.set()
    assert await asyncio.wait_for(running, 5) == "told"


async def test_a_cancellation_by_somebody_else_stays_one() -> None:
    handover = Handover()
    with handover.request(resumable=True) as wait:
        waiting = asyncio.create_task(forever(wait))
        await asyncio.sleep(0)
        waiting.cancel()
        handover.begin()
        with pytest.raises(asyncio.CancelledError):
            await waiting


async def test_inside_a_deadline_each_says_its_own() -> None:
    handover = Handover()

    async def one(wait: Wait, deadline_s: float) -> None:
        async with asyncio.timeout(deadline_s):
            await forever(wait)

    with handover.request(resumable=True) as wait:
        with pytest.raises(TimeoutError):
            await one(wait, 0.01)
        waiting = asyncio.create_task(one(wait, 60))
        await asyncio.sleep(0)
        handover.begin()
        assert await code_of(waiting) == "draining"


async def test_a_request_that_has_ended_is_not_known_any_more() -> None:
    handover = Handover()

    async def one() -> None:
        with handover.request(resumable=True) as wait:
            with wait:
                await asyncio.sleep(0)
            raise ValueError("its own")

    with pytest.raises(ValueError, match="its own"):
        await one()
    assert not handover._waits
