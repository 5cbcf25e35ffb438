"""Answers that later requests go on from, in bounded memory. Pure: the time is passed in.

What was used least recently goes first. It is one process's own and is lost when that stops.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from pydantic_core import from_json

_ENTRY_BYTES: Final = 512
"""About what a key with its entry costs in a dict."""

Key: TypeAlias = tuple[str, str]
"""(tenant, id): nobody finds what another tenant stored."""


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response and what led to it.

    Attributes:
        previous_id: the response that it went on from.
        input: its own input items, a JSON array.
        response: the answer, as the client got it.
        item_ids: of all items in both.
    """

    id: str
    previous_id: str | None
    input: bytes
    response: bytes
    item_ids: tuple[str, ...]

    @property
    def num_bytes(self) -> int:
        """What it costs, with its places in the store's books."""
        return len(self.input) + len(self.response) + _ENTRY_BYTES * (1 + len(self.item_ids))

    def items(self) -> list[dict[str, object]]:
        """Its input, then its output."""
        found: list[dict[str, object]] = from_json(self.input)
        return found + list(from_json(self.response)["output"])


class ResponseStore:
    """Responses by tenant and id.

    Args:
        max_entries, max_bytes: of all responses together; 0 keeps none.
        ttl_s: seconds after its last use that a response is kept.
    """

    def __init__(self, max_entries: int, max_bytes: int, ttl_s: float) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._ttl_s = ttl_s
        self._kept: OrderedDict[Key, tuple[StoredResponse, float]] = OrderedDict()
        self._owners: dict[Key, str] = {}
        self._num_bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def num_bytes(self) -> int:
        """Of all that is kept."""
        return self._num_bytes

    def put(self, tenant: str, stored: StoredResponse, now_s: float) -> None:
        """Keep it, in the place of older ones where room is short; one too large is not kept."""
        if not self._max_entries or stored.num_bytes > self._max_bytes:
            return
        self._kept[tenant, stored.id] = stored, now_s + self._ttl_s
        self._num_bytes += stored.num_bytes
        self._owners.update(((tenant, item_id), stored.id) for item_id in stored.item_ids)
        while len(self._kept) > self._max_entries or self._num_bytes > self._max_bytes:
            self._forget(next(iter(self._kept)))

    def get(self, tenant: str, response_id: str, now_s: float) -> StoredResponse | None:
        """The response, which counts as used now."""
        self._expire(now_s)
        key = tenant, response_id
        found = self._kept.get(key)
        if found is None:
            return None
        self._kept[key] = found[0], now_s + self._ttl_s
        self._kept.move_to_end(key)
        return found[0]

    def chain(self, tenant: str, response_id: str, now_s: float) -> Iterator[StoredResponse]:
        """The response, then those before it, up to the first.

        Raises:
            KeyError: with the id of the one that is not kept.
        """
        wanted: str | None = response_id
        while wanted is not None:
            found = self.get(tenant, wanted, now_s)
            if found is None:
                raise KeyError(wanted)
            yield found
            wanted = found.previous_id

    def item(self, tenant: str, item_id: str, now_s: float) -> dict[str, object] | None:
        """An item of a stored response."""
        found = self.holder(tenant, item_id, now_s)
        if found is None:
            return None
        return next((item for item in found.items() if item.get("id") == item_id), None)

    def holder(self, tenant: str, item_id: str, now_s: float) -> StoredResponse | None:
        """The stored response that has an item."""
        owner = self._owners.get((tenant, item_id))
        return self.get(tenant, owner, now_s) if owner is not None else None

    def delete(self, tenant: str, response_id: str, now_s: float) -> bool:
        """Whether it was there."""
        self._expire(now_s)
        if (tenant, response_id) not in self._kept:
            return False
        self._forget((tenant, response_id))
        return True

    def _expire(self, now_s: float) -> None:
        """In the order of use the times of expiry only grow."""
        while self._kept:
            key, (_, expires_s) = next(iter(self._kept.items()))
            if expires_s > now_s:
                return
            self._forget(key)

    def _forget(self, key: Key) -> None:
        stored, _ = self._kept.pop(key)
        self._num_bytes -= stored.num_bytes
        for item_id in stored.item_ids:
            if self._owners.get((key[0], item_id)) == stored.id:
                del self._owners[key[0], item_id]
