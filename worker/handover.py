"""Ends requests that wait for the engine, so that other workers go on with them.

Nothing is lost: the caller has what was sent, gets a retryable error, and resumes elsewhere.
"""

from __future__ import annotations

import asyncio
from types import TracebackType

from protocol.errors import TriremeError


class Handover:
    """Knows who waits. It begins once, for good; a FastChat caller cannot go on elsewhere, so its
    requests are ended only when it begins for everyone."""

    def __init__(self) -> None:
        self._waits: dict[asyncio.Timeout, bool] = {}
        self._begun = self._for_everyone = False

    def begin(self, *, for_everyone: bool = False) -> None:
        """End what waits now, and what will wait from now on."""
        self._begun, self._for_everyone = True, self._for_everyone or for_everyone
        for wait, resumable in list(self._waits.items()):
            if self._ends(resumable):
                del self._waits[wait]
                wait.reschedule(asyncio.get_running_loop().time())

    def wait(self, *, resumable: bool = True) -> Wait:
        """Around one wait of a request."""
        return Wait(self, resumable)

    def _ends(self, resumable: bool) -> bool:
        return self._begun and (resumable or self._for_everyone)


class Wait:
    """`async with handover.wait(): await …`: ended by the handover with `draining`.

    There must be no `yield` inside. It is made for every batch of tokens, so it is a class: a
    generator costs twice as much.
    """

    __slots__ = ("_handover", "_resumable", "_timeout")

    def __init__(self, handover: Handover, resumable: bool) -> None:
        self._handover = handover
        self._resumable = resumable
        self._timeout = asyncio.timeout(None)

    async def __aenter__(self) -> None:
        if self._handover._ends(self._resumable):
            raise _draining()
        await self._timeout.__aenter__()
        self._handover._waits[self._timeout] = self._resumable

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._handover._waits.pop(self._timeout, None)
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError as over:
            raise _draining() from over


def _draining() -> TriremeError:
    return TriremeError("draining", "This worker is shutting down.")
