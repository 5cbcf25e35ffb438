"""Work for a client ends when its connection is lost, and only then."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from trireme.service.hang_up import HangUp
from trireme.service.streaming import Leash


@pytest.fixture
def hang_up() -> HangUp:
    return HangUp()


@pytest.fixture
def scope(hang_up: HangUp) -> dict[str, Any]:
    state: dict[str, object] = {}
    hang_up.put_into(state)
    return {"state": state}


async def test_a_block_is_cancelled_when_the_client_goes(
    hang_up: HangUp, scope: dict[str, Any]
) -> None:
    asyncio.get_running_loop().call_later(0.01, hang_up.tell)
    with pytest.raises(ClientDisconnect):
        async with Leash(scope):
            await asyncio.sleep(9)
    await asyncio.sleep(0)  # and nothing of the cancellation is left


async def test_a_block_of_a_client_that_is_gone_ends_where_it_waits(
    hang_up: HangUp, scope: dict[str, Any]
) -> None:
    hang_up.tell()
    with pytest.raises(ClientDisconnect):
        async with Leash(scope):
            await asyncio.sleep(9)


async def test_what_waits_for_nothing_is_not_cancelled_later(
    hang_up: HangUp, scope: dict[str, Any]
) -> None:
    hang_up.tell()
    async with Leash(scope):
        pass
    await asyncio.sleep(0.01)


async def test_a_block_that_is_over_is_forgotten(hang_up: HangUp, scope: dict[str, Any]) -> None:
    async with Leash(scope):
        assert len(hang_up.calls) == 1
    assert not hang_up.calls
    hang_up.tell()
    await asyncio.sleep(0)


async def test_another_cancellation_stays_one(hang_up: HangUp, scope: dict[str, Any]) -> None:
    async def work() -> None:
        async with Leash(scope):
            await asyncio.sleep(9)

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    hang_up.tell()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
