from __future__ import annotations

import json
from time import monotonic
from typing import Any

import pytest

from gateway.responses.store import ResponseStore, StoredResponse
from gateway.responses.stored_items import StoredItems
from protocol.errors import TriremeError
from protocol.response_items import MessageItem


def message(item_id: str, text: str) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": text, "id": item_id}


def stored(number: int, text: str) -> StoredResponse:
    before = f"resp_{number - 1}" if number else None
    items = json.dumps([message(f"msg_{number}", text)]).encode()
    return StoredResponse(f"resp_{number}", before, items, b'{"output": []}', (f"msg_{number}",))


@pytest.fixture
def store() -> ResponseStore:
    made = ResponseStore(100, 10**6, 1000.0)
    for number in range(4):
        made.put("t", stored(number, "x" * 1000), monotonic())
    return made


def texts(items: list[Any]) -> list[Any]:
    return [item.content for item in items]


def test_items_and_conversations_are_found(store: ResponseStore) -> None:
    found = StoredItems(store, "t", 100_000)
    item = found.item("msg_2")
    assert isinstance(item, MessageItem)
    assert item.content == "x" * 1000
    assert found.item("msg_9") is None
    assert StoredItems(store, "other", 100_000).item("msg_2") is None
    assert len(found.before("resp_3")) == 4
    assert found.before(None) == []


def test_a_few_bytes_cannot_stand_for_many(store: ResponseStore) -> None:
    found = StoredItems(store, "t", 6_000)
    assert [found.item("msg_1") is None for _ in range(3)] == [False] * 3
    with pytest.raises(TriremeError, match="more than 6000 bytes"):
        found.before("resp_1")
    found = StoredItems(store, "t", 6_000)
    with pytest.raises(TriremeError, match="more than 6000 bytes") as caught:
        found.before("resp_3")
    assert (caught.value.code, caught.value.param) == ("invalid_value", "previous_response_id")


def test_an_unknown_response_is_named(store: ResponseStore) -> None:
    with pytest.raises(TriremeError, match="resp_9") as caught:
        StoredItems(store, "t", 6_000).before("resp_9")
    assert caught.value.code == "previous_response_not_found"
