"""A queue that is fair between tenants. Pure: no clock, no I/O.

Each tenant has a counter of what it was served, and the one with the smallest is next: the virtual
token counter of Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024). A prompt's
token costs 1, a generated one 2. A tenant that comes back is lifted to the smallest counter of
those who wait: being away earns nothing.
"""

from __future__ import annotations

import heapq
from collections.abc import Container, Iterator
from typing import Final, Generic, NamedTuple, TypeAlias, TypeVar

GENERATED_COST: Final = 2
MAX_TENANTS: Final = 4096

_T = TypeVar("_T")
_Rank: TypeAlias = tuple[bool, int, tuple[int, ...]]


class _Entry(NamedTuple, Generic[_T]):
    """Of a tenant's queue; `order` is unique, so that items are never compared."""

    order: tuple[int, ...]
    keeps_place: bool
    item: _T


class FairQueue(Generic[_T]):
    """Items that wait: next is one of the tenant that was served least, of its own the first in
    their order. Adding and popping take logarithmic time.

    Items can be put aside, to be popped only when they are asked for.
    """

    def __init__(self) -> None:
        self._served: dict[str, int] = {}
        self._ready: _Lane[_T] = _Lane(self._served)
        self._aside: _Lane[_T] = _Lane(self._served)
        self._last = ""

    def __len__(self) -> int:
        return len(self._ready) + len(self._aside)

    @property
    def num_ready(self) -> int:
        """Items that are not put aside."""
        return len(self._ready)

    def __iter__(self) -> Iterator[_T]:
        """In no particular order."""
        yield from self._ready
        yield from self._aside

    def served(self, tenant: str) -> int:
        """What it was charged, and lifted by."""
        return self._served.get(tenant, 0)

    def add(
        self, tenant: str, order: tuple[int, ...], item: _T, *, keeps_place: bool = False
    ) -> None:
        """Queue an item that arrives.

        Args:
            order: unique; of the tenant's own the lowest is next.
            keeps_place: it was taken before, and when it is its tenant's next it comes before what
                others have waiting.
        """
        arrives = not self._waits(tenant)
        if arrives:
            waiting = [self.served(one) for one in {*self._ready.tenants, *self._aside.tenants}]
            self._served[tenant] = max(
                self.served(tenant), min(waiting, default=self.served(self._last))
            )
        self.put_back(tenant, order, item, keeps_place=keeps_place)
        if arrives:
            self._forget()

    def put_back(
        self,
        tenant: str,
        order: tuple[int, ...],
        item: _T,
        *,
        keeps_place: bool = False,
        aside: bool = False,
    ) -> None:
        """Queue an item again that was popped and not served."""
        lane = self._aside if aside else self._ready
        lane.push(tenant, _Entry(order, keeps_place, item))

    def pop(self, *, with_aside: bool = True) -> _T:
        """Take the next item; IndexError when there is none."""
        lanes = [self._ready, self._aside] if with_aside else [self._ready]
        heads = [(head, lane) for lane in lanes if (head := lane.head) is not None]
        if not heads:
            raise IndexError("the queue is empty")
        return min(heads, key=lambda one: one[0])[1].pop()

    def discard(self, gone: Container[int]) -> None:
        """Take out the items whose `id` is one of these."""
        self._ready.discard(gone)
        self._aside.discard(gone)

    def charge_prompt(self, tenant: str, num_tokens: int) -> None:
        """An item of the tenant is served, with a prompt of so many tokens."""
        self._last = tenant
        self._served[tenant] = self.served(tenant) + num_tokens

    def charge_generated(self, tenant: str, num_tokens: int) -> None:
        """So many tokens were generated for the tenant."""
        self._served[tenant] = self.served(tenant) + GENERATED_COST * num_tokens

    def _waits(self, tenant: str) -> bool:
        return tenant in self._ready.tenants or tenant in self._aside.tenants

    def _forget(self) -> None:
        """Bound the memory: of those who do not wait the least served are forgotten, half of all.

        The lift brings most of them to where they were.
        """
        if len(self._served) <= MAX_TENANTS:
            return
        idle = [one for one in self._served if one != self._last and not self._waits(one)]
        for tenant in sorted(idle, key=self.served)[: MAX_TENANTS // 2]:
            del self._served[tenant]


class _Lane(Generic[_T]):
    """The queues of tenants, and a heap of the tenants by the rank of their next item.

    Ranks grow as tenants are charged, which nobody tells the heap: an entry that comes to its top
    is brought up to date then. What a later entry has replaced stays until it comes to the top.
    """

    def __init__(self, served: dict[str, int]) -> None:
        self.tenants: dict[str, list[_Entry[_T]]] = {}
        self._served = served
        self._heap: list[tuple[_Rank, str]] = []
        self._ranks: dict[str, _Rank] = {}  # of the heap's entries that count
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[_T]:
        return (entry.item for queue in self.tenants.values() for entry in queue)

    @property
    def head(self) -> tuple[_Rank, str] | None:
        """The rank and the tenant of the next item."""
        while self._heap:
            rank, tenant = self._heap[0]
            if self._ranks.get(tenant) != rank:
                heapq.heappop(self._heap)
            elif (now := self._rank(tenant)) != rank:
                self._ranks[tenant] = now
                heapq.heapreplace(self._heap, (now, tenant))
            else:
                return rank, tenant
        return None

    def push(self, tenant: str, entry: _Entry[_T]) -> None:
        heapq.heappush(self.tenants.setdefault(tenant, []), entry)
        self._length += 1
        self._rank_anew(tenant)

    def pop(self) -> _T:
        """Take the next item."""
        assert self.head is not None
        tenant = heapq.heappop(self._heap)[1]
        queue = self.tenants[tenant]
        item = heapq.heappop(queue).item
        self._length -= 1
        del self._ranks[tenant]
        if queue:
            self._rank_anew(tenant)
        else:
            del self.tenants[tenant]
        return item

    def discard(self, gone: Container[int]) -> None:
        for tenant, queue in list(self.tenants.items()):
            kept = [entry for entry in queue if id(entry.item) not in gone]
            if len(kept) == len(queue):
                continue
            self._length -= len(queue) - len(kept)
            heapq.heapify(kept)
            if kept:
                self.tenants[tenant] = kept
                self._rank_anew(tenant)
            else:
                del self.tenants[tenant], self._ranks[tenant]

    def _rank_anew(self, tenant: str) -> None:
        rank = self._rank(tenant)
        if self._ranks.get(tenant) != rank:
            self._ranks[tenant] = rank
            heapq.heappush(self._heap, (rank, tenant))
        if len(self._heap) > 2 * len(self.tenants) + 16:
            self._heap = [(rank, tenant) for tenant, rank in self._ranks.items()]
            heapq.heapify(self._heap)

    def _rank(self, tenant: str) -> _Rank:
        head = self.tenants[tenant][0]
        return not head.keeps_place, self._served.get(tenant, 0), head.order
