"""Runs several async generators at once as one; closes all of them, whatever happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, TypeVar

_T = TypeVar("_T")

_BUFFERED_ITEMS: Final = 64


@dataclass(frozen=True, slots=True)
class _End:
    """A source is exhausted, or failed."""

    error: Exception | None = None


def merged(sources: Sequence[AsyncGenerator[_T, None]], at_once: int) -> AsyncGenerator[_T, None]:
    """The items of all sources as they come; the first error of a source is raised.

    Args:
        at_once: how many sources run at the same time; the others wait for their turn.
    """
    return sources[0] if len(sources) == 1 else _merged(sources, at_once)


async def _merged(
    sources: Sequence[AsyncGenerator[_T, None]], at_once: int
) -> AsyncGenerator[_T, None]:
    queue: asyncio.Queue[_T | _End] = asyncio.Queue(_BUFFERED_ITEMS)
    turns = asyncio.Semaphore(at_once)
    tasks = [asyncio.create_task(_pump(source, queue, turns)) for source in sources]
    running = len(tasks)
    try:
        while running:
            found = await queue.get()
            if not isinstance(found, _End):
                yield found
                continue
            if found.error is not None:
                try:
                    raise found.error
                finally:
                    del found  # else this frame holds the error, and the error this frame
            running -= 1
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        while not queue.empty():  # errors in it hold the frames that hold it
            queue.get_nowait()


async def _pump(
    source: AsyncGenerator[_T, None],
    queue: asyncio.Queue[_T | _End],
    turns: asyncio.Semaphore,
) -> None:
    async with turns:
        try:
            async with aclosing(source):
                async for item in source:
                    await queue.put(item)
        except Exception as error:
            await queue.put(_End(error))  # no name keeps it: its traceback holds this frame
        else:
            await queue.put(_End())
