"""Several generators as one."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from gateway.merge import merged


class Source:
    def __init__(self, *items: int | Exception, pause_s: float = 0) -> None:
        self.items, self.pause_s = items, pause_s
        self.started = self.closed = False

    async def stream(self) -> AsyncGenerator[int, None]:
        self.started = True
        try:
            for item in self.items:
                await asyncio.sleep(self.pause_s)
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self.closed = True


@pytest.mark.parametrize("count", [1, 3])
async def test_all_items_come(count: int) -> None:
    sources = [Source(10 * i, 10 * i + 1) for i in range(count)]
    found = [item async for item in merged([s.stream() for s in sources], at_once=2)]
    assert sorted(found) == [item for source in sources for item in source.items]
    assert all(source.closed for source in sources)


@pytest.mark.parametrize("count", [1, 3])
async def test_the_first_error_is_raised_and_all_are_closed(count: int) -> None:
    sources = [Source(ValueError("no")), *(Source(1, pause_s=9) for _ in range(count - 1))]
    with pytest.raises(ValueError, match="no"):
        _ = [item async for item in merged([s.stream() for s in sources], at_once=3)]
    assert all(source.closed for source in sources)


@pytest.mark.parametrize("count", [1, 3])
async def test_closing_it_closes_all(count: int) -> None:
    sources = [Source(*range(1000)) for _ in range(count)]
    async with aclosing(merged([s.stream() for s in sources], at_once=3)) as both:
        await anext(both)
    assert all(source.closed for source in sources if source.started)
    assert sources[0].closed


async def test_no_more_than_at_once_run() -> None:
    sources = [Source(1, pause_s=9), Source(2), Source(3)]
    async with aclosing(merged([s.stream() for s in sources], at_once=2)) as both:
        assert [await anext(both), await anext(both)] == [2, 3]
    sources = [Source(1, pause_s=9), Source(1)]
    one = merged([s.stream() for s in sources], at_once=1)
    task = asyncio.create_task(anext(one))
    await asyncio.sleep(0.01)
    assert [source.started for source in sources] == [True, False]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await one.aclose()


class Broken(Exception):
    """One that can be watched: the built-in ones cannot."""


async def test_errors_leave_nothing_to_the_garbage_collector() -> None:
    """Their frames hold what was asked for, which may have megabytes."""
    found: list[weakref.ref[Exception]] = []

    async def failing() -> AsyncGenerator[str, None]:
        yield "item"
        error = Broken()
        found.append(weakref.ref(error))
        try:
            raise error
        finally:
            del error

    gc.disable()
    try:
        try:
            async for _ in merged([failing(), failing()], 2):
                pass
        except Broken:
            pass
        await asyncio.sleep(0)
        assert [one() for one in found] == [None, None]
    finally:
        gc.enable()
