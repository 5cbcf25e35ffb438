"""What one request takes of earlier responses, within a bound: a few bytes can name much."""

from __future__ import annotations

from time import monotonic
from typing import Any

from pydantic_core import to_json

from gateway.responses.store import ResponseStore
from protocol.errors import TriremeError, quoted
from protocol.response_items import ITEMS, Item


class StoredItems:
    """Items of one tenant's stored responses, as far as `max_bytes` of JSON go in one request."""

    def __init__(self, store: ResponseStore, tenant: str, max_bytes: int) -> None:
        self._store = store
        self._tenant = tenant
        self._max_bytes = self._left = max_bytes
        self._read: dict[str, dict[str, Any]] = {}
        self._items: dict[str, tuple[Item, int]] = {}

    def item(self, item_id: str) -> Item | None:
        """The item of that id; every mention of it counts.

        Raises:
            TriremeError: `invalid_value` beyond the bound.
        """
        if item_id not in self._read:
            holder = self._store.holder(self._tenant, item_id, monotonic())
            if holder is None:
                return None
            self._spend(holder.num_bytes, "input")
            self._read.update((str(one.get("id")), one) for one in holder.items())
        if item_id not in self._items:
            raw = self._read.get(item_id)
            if raw is None:
                return None
            self._items[item_id] = ITEMS.validate_python([raw])[0], len(to_json(raw))
        found, num_bytes = self._items[item_id]
        self._spend(num_bytes, "input")
        return found

    def before(self, response_id: str | None) -> list[Item]:
        """The conversation that a request goes on from.

        Raises:
            TriremeError: `previous_response_not_found`; `invalid_value` beyond the bound.
        """
        if response_id is None:
            return []
        at, chain = "previous_response_id", []
        try:
            for one in self._store.chain(self._tenant, response_id, monotonic()):
                self._spend(one.num_bytes, at)
                chain.append(one)
        except KeyError as missing:
            shown = quoted(str(missing.args[0]))
            message = f"Previous response with id '{shown}' not found."
            raise TriremeError("previous_response_not_found", message, param=at) from None
        return [item for one in reversed(chain) for item in ITEMS.validate_python(one.items())]

    def _spend(self, num_bytes: int, param: str) -> None:
        self._left -= num_bytes
        if self._left < 0:
            message = f"It stands for more than {self._max_bytes} bytes of stored items."
            raise TriremeError("invalid_value", message, param=param)
