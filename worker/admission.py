"""Who may come in, who waits, who is turned away: decided at arrival, bounded in everything."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter, deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

from protocol.errors import TriremeError
from worker.engine.fairness import FairQueue

_SPARE = 4
_WINDOW_S = 10.0
_MIN_RETRY_S, _MAX_RETRY_S = 0.5, 60.0


class Ticket:
    """A place in the worker, from admission to the last event; leave it by the `with` block.

    Attributes:
        generated: tokens that the request has got, when it leaves.
    """

    def __init__(
        self, admission: Admission, tokens: int, sequences: int, priority: int, tenant: str
    ) -> None:
        self.tokens = tokens
        self.sequences = sequences
        self.priority = priority
        self.tenant = tenant
        self.generated = 0
        self.waiting = True
        self.turn: asyncio.Future[None] | None = None
        self._admission = admission

    async def wait_turn(self) -> None:
        """Returns when fewer requests run than the limit allows; at once without a limit."""
        await self._admission._wait_turn(self)

    def first_output(self) -> None:
        """The engine has begun: the request does not wait any more."""
        self._admission._begun(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._admission._leave(self)


class Admission:
    """Counts requests from arrival to end.

    Args:
        limit: requests that run at once; None leaves that to the engine, which queues itself.
        capacity: sequences that the engine runs at once: so many wait for nobody.
        max_queue_requests, max_queue_tokens: most that may wait for a first token beyond that. A
            quarter more is kept for tenants who have less than their equal share of it.
        clock: seconds, monotonic; measures how fast the queue drains.
    """

    def __init__(
        self,
        *,
        limit: int | None,
        capacity: int,
        max_queue_requests: int,
        max_queue_tokens: int,
        clock: Callable[[], float],
    ) -> None:
        self._limit = limit
        self._capacity = capacity if limit is None else min(capacity, limit)
        self._max_requests = max_queue_requests
        self._max_tokens = max_queue_tokens
        self._clock = clock
        self._order = itertools.count()
        self._queue: FairQueue[Ticket] = FairQueue()
        self._present = 0
        self._present_of: Counter[str] = Counter()
        self._running = 0
        self._waiting_tokens = 0
        self._departures: deque[float] = deque(maxlen=256)

    @property
    def queued(self) -> int:
        """Requests that wait for their turn under the limit; the engine does not know them yet."""
        return len(self._queue)

    @property
    def queued_tokens(self) -> int:
        """Their prompt tokens."""
        return sum(ticket.tokens for ticket in self._queue)

    @property
    def capacity(self) -> int:
        """Requests that run at once, at most."""
        return self._capacity

    def enter(
        self,
        tokens: int,
        sequences: int = 1,
        priority: int = 0,
        tenant: str = "",
        *,
        admitted: bool = False,
    ) -> Ticket:
        """Take a place.

        Args:
            tokens: the prompt's. sequences: choices.
            priority: of the tenant's own, lower goes first.
            tenant: those who ask are served fairly.
            admitted: whether it had its place at another worker, which keeps it in every queue:
                there are never more of these than that worker could have.

        Raises:
            TriremeError: `overloaded`, with the seconds after which a place should be free.
        """
        beyond = self._present + sequences - self._capacity
        spare = 1 + self._has_little(tenant, sequences) / _SPARE
        too_many = self._present > 0 and beyond > spare * self._max_requests
        waiting_tokens = self._waiting_tokens
        too_long = waiting_tokens > 0 and waiting_tokens + tokens > spare * self._max_tokens
        if (too_many or too_long) and not admitted:
            raise TriremeError(
                "overloaded",
                "The worker's queue is full. Please retry later.",
                retry_after_s=self._retry_after_s(),
            )
        self._present += sequences
        self._present_of[tenant] += sequences
        self._waiting_tokens += tokens
        return Ticket(self, tokens, sequences, priority, tenant)

    def _has_little(self, tenant: str, sequences: int) -> bool:
        """Whether a tenant with so many more had less than an equal share of what is here."""
        others = len(self._present_of.keys() - {tenant})
        has = self._present_of.get(tenant, 0) + sequences
        return others > 0 and has * (others + 1) <= self._present

    async def _wait_turn(self, ticket: Ticket) -> None:
        if self._limit is None:
            return
        turn = asyncio.get_running_loop().create_future()
        ticket.turn = turn
        self._queue.add(ticket.tenant, (ticket.priority, next(self._order)), ticket)
        self._call_next()
        await turn

    def _call_next(self) -> None:
        while self._queue and self._limit is not None and self._running < self._limit:
            ticket = self._queue.pop()
            turn = ticket.turn
            if turn is not None and not turn.done():
                turn.set_result(None)
                self._queue.charge_prompt(ticket.tenant, ticket.tokens)
                self._running += 1

    def _begun(self, ticket: Ticket) -> None:
        if ticket.waiting:
            ticket.waiting = False
            self._waiting_tokens -= ticket.tokens

    def _leave(self, ticket: Ticket) -> None:
        self._begun(ticket)
        self._present -= ticket.sequences
        self._present_of[ticket.tenant] -= ticket.sequences
        if not self._present_of[ticket.tenant]:
            del self._present_of[ticket.tenant]
        self._departures.append(self._clock())
        if ticket.turn is not None:
            if ticket.turn.done() and not ticket.turn.cancelled():
                self._running -= 1
                self._queue.charge_generated(ticket.tenant, ticket.generated)
            else:
                self._queue.discard({id(ticket)})
            self._call_next()

    def _retry_after_s(self) -> float:
        """How long the queue takes to drain at the rate of the last seconds."""
        now = self._clock()
        recent = sum(1 for left in self._departures if now - left <= _WINDOW_S)
        if recent == 0:
            return _WINDOW_S
        waiting = max(1, self._present - self._capacity)
        return min(_MAX_RETRY_S, max(_MIN_RETRY_S, waiting * _WINDOW_S / recent))
