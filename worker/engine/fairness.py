"""A queue that is fair between tenants. Pure: no clock, no I/O.

Each tenant has a counter of what it was served, and the one with the smallest is next: the virtual
token counter of Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024). A prompt's
token costs 1, a generated one 2. A tenant that comes back is lifted to the smallest counter of
those who wait: being away earns nothing.
"""

from __future__ import annotations

import heapq
from collections.abc import Container, Iterator
from typing import Final, Generic, NamedTuple, TypeVar

GENERATED_COST: Final = 2
MAX_TENANTS: Final = 4096

_T = TypeVar("_T")


class _Entry(NamedTuple, Generic[_T]):
    """Of a tenant's queue; `order` is unique, so that items are never compared."""

    order: tuple[int, ...]
    keeps_place: bool
    item: _T


class FairQueue(Generic[_T]):
    """Items that wait. By priority; then of the tenant that was served least; a tenant's own in
    their order."""

    def __init__(self) -> None:
        self._queues: dict[str, list[_Entry[_T]]] = {}
        self._served: dict[str, int] = {}
        self._last = ""
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[_T]:
        """In no particular order."""
        return (entry.item for queue in self._queues.values() for entry in queue)

    def served(self, tenant: str) -> int:
        """What it was charged, and lifted by."""
        return self._served.get(tenant, 0)

    def add(
        self, tenant: str, order: tuple[int, ...], item: _T, *, keeps_place: bool = False
    ) -> None:
        """Queue an item that arrives.

        Args:
            order: unique; the priority first, the lowest is next.
            keeps_place: it was taken before, and when it is its tenant's next it comes before what
                others have waiting.
        """
        if tenant not in self._queues:
            waiting = [self.served(one) for one in self._queues] or [self.served(self._last)]
            self._served[tenant] = max(self.served(tenant), min(waiting))
            self._forget()
        self.put_back(tenant, order, item, keeps_place=keeps_place)

    def put_back(
        self, tenant: str, order: tuple[int, ...], item: _T, *, keeps_place: bool = False
    ) -> None:
        """Queue an item again that was popped and not served."""
        heapq.heappush(self._queues.setdefault(tenant, []), _Entry(order, keeps_place, item))
        self._length += 1

    def pop(self) -> _T:
        """Take the next item; IndexError when there is none."""
        if not self._queues:
            raise IndexError("the queue is empty")
        tenant = next(iter(self._queues))
        if len(self._queues) > 1:
            tenant = min(self._queues, key=self._rank)
        queue = self._queues[tenant]
        item = heapq.heappop(queue).item
        if not queue:
            del self._queues[tenant]
        self._length -= 1
        return item

    def discard(self, gone: Container[int]) -> None:
        """Take out the items whose `id` is one of these."""
        for tenant, queue in list(self._queues.items()):
            kept = [entry for entry in queue if id(entry.item) not in gone]
            if len(kept) == len(queue):
                continue
            self._length -= len(queue) - len(kept)
            heapq.heapify(kept)
            if kept:
                self._queues[tenant] = kept
            else:
                del self._queues[tenant]

    def charge_prompt(self, tenant: str, num_tokens: int) -> None:
        """An item of the tenant is served, with a prompt of so many tokens."""
        self._last = tenant
        self._served[tenant] = self.served(tenant) + num_tokens

    def charge_generated(self, tenant: str, num_tokens: int) -> None:
        """So many tokens were generated for the tenant."""
        self._served[tenant] = self.served(tenant) + GENERATED_COST * num_tokens

    def _rank(self, tenant: str) -> tuple[int, int, tuple[int, ...]]:
        head = self._queues[tenant][0]
        return head.order[0], -1 if head.keeps_place else self.served(tenant), head.order

    def _forget(self) -> None:
        """Bound the memory: of those who do not wait the least served are forgotten, half of all.

        The lift brings most of them to where they were.
        """
        if len(self._served) <= MAX_TENANTS:
            return
        idle = sorted(self._served.keys() - self._queues.keys() - {self._last}, key=self.served)
        for tenant in idle[: MAX_TENANTS // 2]:
            del self._served[tenant]
