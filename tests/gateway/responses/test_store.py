"""Stored responses: found by their own tenant only, forgotten in the order of their use."""

from __future__ import annotations

import json

import pytest

from gateway.responses.store import ResponseStore, StoredResponse


def stored(name: str, previous: str | None = None, item: str = "", size: int = 0) -> StoredResponse:
    ids = (f"in-{name}", item or f"out-{name}")
    return StoredResponse(
        name,
        previous,
        json.dumps([{"id": ids[0]}]).encode(),
        json.dumps({"output": [{"id": ids[1]}], "pad": "x" * size}).encode(),
        ids,
    )


def make(max_entries: int = 9, max_bytes: int = 10_000, ttl_s: float = 60.0) -> ResponseStore:
    return ResponseStore(max_entries, max_bytes, ttl_s)


def test_a_tenant_finds_its_own_responses_and_items_only() -> None:
    store = make()
    store.put("ann", stored("r"), 0)
    assert store.get("ann", "r", 0) == stored("r")
    assert store.item("ann", "out-r", 0) == {"id": "out-r"}
    assert store.get("bob", "r", 0) is None
    assert store.item("bob", "out-r", 0) is None
    assert not store.delete("bob", "r", 0)
    assert store.delete("ann", "r", 0)
    assert not store.delete("ann", "r", 0)


def test_the_least_recently_used_goes_first() -> None:
    store = make(max_entries=2)
    store.put("t", stored("a"), 0)
    store.put("t", stored("b"), 0)
    store.get("t", "a", 0)
    store.put("t", stored("c"), 0)
    assert [name for name in "abc" if store.get("t", name, 0)] == ["a", "c"]


def test_the_bytes_of_all_are_bounded_and_given_back() -> None:
    size = stored("a", size=100).num_bytes
    store = make(max_bytes=2 * size)
    for name in "abc":
        store.put("t", stored(name, size=100), 0)
    assert (len(store), store.num_bytes) == (2, 2 * size)
    store.put("t", stored("d", size=5000), 0)
    assert store.get("t", "d", 0) is None
    assert len(store) == 2
    store.delete("t", "b", 0)
    store.delete("t", "c", 0)
    assert (len(store), store.num_bytes) == (0, 0)


def test_a_response_lives_for_its_time_after_the_last_use() -> None:
    store = make(ttl_s=10)
    store.put("t", stored("a"), 0)
    assert store.get("t", "a", 9)
    assert store.get("t", "a", 18)
    assert store.get("t", "a", 28) is None
    assert store.num_bytes == 0


def test_a_chain_is_used_as_a_whole() -> None:
    store = make(max_entries=3)
    store.put("t", stored("a"), 0)
    store.put("t", stored("b", "a"), 0)
    store.put("t", stored("x"), 0)
    assert [one.id for one in store.chain("t", "b", 0)] == ["b", "a"]
    store.put("t", stored("y"), 0)
    assert store.get("t", "x", 0) is None
    assert [one.id for one in store.chain("t", "b", 0)] == ["b", "a"]
    store.delete("t", "a", 0)
    with pytest.raises(KeyError, match="a"):
        list(store.chain("t", "b", 0))


def test_an_item_belongs_to_the_response_that_had_it_last() -> None:
    store = make()
    store.put("t", stored("a", item="shared"), 0)
    store.put("t", stored("b", item="shared"), 0)
    store.delete("t", "a", 0)
    assert store.item("t", "shared", 0) == {"id": "shared"}
    store.delete("t", "b", 0)
    assert store.item("t", "shared", 0) is None


@pytest.mark.parametrize("bounds", [(0, 1000), (9, 0)])
def test_a_store_of_nothing_keeps_nothing(bounds: tuple[int, int]) -> None:
    store = make(*bounds)
    store.put("t", stored("a"), 0)
    assert len(store) == 0
