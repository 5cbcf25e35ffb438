"""Ends requests that wait for the engine, so that other workers go on with them.

Nothing is lost: the caller has what was sent, gets a retryable error, and resumes elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from protocol.errors import TriremeError


class Handover:
    """Knows the requests. It begins once, for good; a FastChat caller cannot go on elsewhere, so
    its requests are ended only when it begins for everyone."""

    def __init__(self) -> None:
        self._waits: set[Wait] = set()
        self._begun = self._for_everyone = False

    def begin(self, *, for_everyone: bool = False) -> None:
        """End what waits now, and what will wait from now on."""
        self._begun, self._for_everyone = True, self._for_everyone or for_everyone
        for wait in self._waits:
            if self._ends(wait.resumable):
                wait.end()

    @contextmanager
    def request(self, *, resumable: bool) -> Iterator[Wait]:
        """Around a request, with what goes around each of its waits."""
        wait = Wait(resumable)
        if self._ends(resumable):
            wait.end()
        self._waits.add(wait)
        try:
            yield wait
        finally:
            self._waits.remove(wait)

    def _ends(self, resumable: bool) -> bool:
        return self._begun and (resumable or self._for_everyone)


class Wait:
    """`with wait: await …`, again and again: ended by the handover with `draining`.

    There must be no `yield` inside. It is entered for every batch of tokens, so it does no more
    than it must: an `asyncio.timeout` for each costs four times as much.

    Attributes:
        resumable: the caller can go on elsewhere.
    """

    __slots__ = ("_cancelled", "_cancelling", "_ended", "_task", "resumable")

    def __init__(self, resumable: bool) -> None:
        self.resumable = resumable
        self._ended = self._cancelled = False
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0

    def end(self) -> None:
        """End the wait under way, and each to come."""
        self._ended = True
        if self._task is not None and not self._cancelled:
            self._cancelled = True
            self._task.cancel()

    def __enter__(self) -> None:
        if self._ended:
            raise _draining()
        self._task = task = asyncio.current_task()
        assert task is not None
        self._cancelling = task.cancelling()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        task, self._task = self._task, None
        if not self._cancelled or task is None:
            return
        self._cancelled = False
        # as asyncio.timeout does: someone else may have cancelled the task as well
        if task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise _draining() from error


def _draining() -> TriremeError:
    return TriremeError("draining", "This worker is shutting down.")
