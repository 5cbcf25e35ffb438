"""Long polls on the registry: a change wakes whoever waits. Knows no HTTP.

A change of shape (a worker joins, leaves, changes its state or models) wakes at once. A change of
load only is gathered for `LOAD_DELAY_S`, so a large fleet's heartbeats wake a gateway at most
1 / LOAD_DELAY_S times a second.
"""

from __future__ import annotations

import asyncio
from typing import Final

from controller.registry import Registry
from protocol.errors import TriremeError

LOAD_DELAY_S: Final = 0.05
MAX_WAIT_S: Final = 30.0
MAX_WAITERS: Final = 1024
KEPT_RENDERINGS: Final = 64


class FleetFeed:
    """Publishes the registry's versions to waiting polls; lives in one event loop.

    Attributes:
        waiting: polls that wait now.
        closed: whether `close` was called; from then on nobody waits.
    """

    def __init__(self, registry: Registry) -> None:
        self.waiting = 0
        self.closed = False
        self._registry = registry
        self._published = registry.version
        self._shape_published = registry.shape_version
        self._wake = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._rendered: dict[int | None, bytes] = {}
        self._rendered_revision = 0

    def publish(self) -> None:
        """Call after every change of the registry."""
        if self._registry.shape_version > self._shape_published:
            self._fire()
        elif self._registry.version > self._published and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOAD_DELAY_S, self._fire)

    def close(self) -> None:
        """End all polls now; later ones return at once."""
        self.closed = True
        self._fire()

    def rendered(self, after: int | None = None) -> bytes:
        """The snapshot as JSON, or the changes since version `after`; made once a revision."""
        if self._rendered_revision != self._registry.revision:
            self._rendered_revision = self._registry.revision
            self._rendered.clear()
        found = self._rendered.get(after)
        if found is None:
            registry = self._registry
            snapshot = registry.snapshot() if after is None else registry.changes(after)
            found = snapshot.model_dump_json().encode()
            if len(self._rendered) < KEPT_RENDERINGS:
                self._rendered[after] = found
        return found

    async def wait_after(self, version: int, wait_s: float) -> None:
        """Return when a version above `version` is published, or after `wait_s` seconds.

        Raises:
            TriremeError: `overloaded` when too many wait already.
        """
        if self.closed or self._published > version or wait_s <= 0:
            return
        if self.waiting >= MAX_WAITERS:
            raise TriremeError(
                "overloaded", f"{MAX_WAITERS} polls wait already.", retry_after_s=1.0
            )
        self.waiting += 1
        try:
            async with asyncio.timeout(min(wait_s, MAX_WAIT_S)):
                while not self.closed and self._published <= version:
                    await self._wake.wait()
        except TimeoutError:
            pass
        finally:
            self.waiting -= 1

    def _fire(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._published = self._registry.version
        self._shape_published = self._registry.shape_version
        self._wake.set()
        self._wake = asyncio.Event()
