"""Which worker gets a request: load, prefixes, bounds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import pytest

from gateway.prefix import CHUNK_BYTES, CHUNK_TOKENS, PrefixIndex, fingerprint, prompt_tokens
from gateway.routing import POLICIES, Group, InFlight, Query, least_loaded, prefix_aware
from protocol.fleet import Load, WorkerRecord
from protocol.generation import GenerateRequest
from tests.gateway.fakes import record


def worker(name: str, waiting_tokens: int = 0, **fields: object) -> WorkerRecord:
    load = Load(waiting_tokens=waiting_tokens, capacity=8)
    return record(name, f"http://{name}:1", **({"load": load} | fields))


def text(prompt: str | None, **fields: object) -> GenerateRequest:
    return GenerateRequest.model_validate(
        {"request_id": "r", "model": "m", "prompt": prompt} | fields
    )


def query(workers: Sequence[WorkerRecord], sent: Mapping[str, int] = {}, **more: Any) -> Query:
    """`sent`: tokens that no heartbeat has reported."""
    return Query(Group(workers), unreported=lambda w: sent.get(w.instance_id, 0), **more)


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_takes_the_only_worker_and_any_of_equal_ones(name: str) -> None:
    workers, rng = [worker(f"w{i}") for i in range(3)], Random(1)
    assert POLICIES[name](query(workers[:1]), rng).chosen.worker is workers[0]
    taken = {POLICIES[name](query(workers), rng).chosen.worker.instance_id for _ in range(100)}
    assert taken == {"w0", "w1", "w2"}


def test_the_less_loaded_of_two_is_taken() -> None:
    workers = [worker("a", 900), worker("b", 100)]
    assert prefix_aware(query(workers), Random(1)).chosen.worker is workers[1]


def test_own_requests_that_no_heartbeat_has_reported_count_as_load() -> None:
    workers = [worker("a"), worker("b", 100)]
    assert prefix_aware(query(workers, {"a": 500}), Random(1)).chosen.worker is workers[1]


def test_a_faster_worker_may_have_the_longer_queue() -> None:
    slow = worker("slow", load=Load(waiting_tokens=100, prefill_tps=100.0))
    fast = worker("fast", load=Load(waiting_tokens=500, prefill_tps=1000.0))
    assert least_loaded(query([slow, fast]), Random(1)).chosen.worker is fast


def test_a_fastchat_worker_is_weighed_by_its_queue() -> None:
    busy = worker("busy", wire="fastchat", queue_length=4)
    idle = worker("idle", wire="fastchat", queue_length=0)
    assert least_loaded(query([busy, idle]), Random(1)).chosen.worker is idle


def test_equal_workers_share_the_load() -> None:
    workers, rng = [worker(f"w{i}") for i in range(4)], Random(7)
    firsts = Counter(
        prefix_aware(query(workers), rng).chosen.worker.instance_id for _ in range(2000)
    )
    assert min(firsts.values()) > 400


def test_two_random_choices_keep_the_longest_queue_short() -> None:
    workers, rng, sent = [worker(f"w{i}") for i in range(20)], Random(3), Counter[str]()
    for _ in range(2000):
        chosen = prefix_aware(query(workers, sent), rng).chosen.worker
        sent[chosen.instance_id] += 1
    assert max(sent.values()) - min(sent.values()) < 12


def test_the_worker_that_saw_the_prefix_is_found_among_many() -> None:
    workers, rng = [worker(f"w{i}") for i in range(1000)], Random(5)
    asked = query(workers, prompt_tokens=600, matched={"w13": 512})
    assert all(prefix_aware(asked, rng).chosen.worker.instance_id == "w13" for _ in range(50))


def test_among_a_thousand_workers_a_few_are_looked_at() -> None:
    workers, looked = [worker(f"w{i}") for i in range(1000)], Counter[str]()

    def unreported(one: WorkerRecord) -> int:
        looked[one.instance_id] += 1
        return 0

    asked = Query(Group(workers), 600, unreported, {"w13": 512})
    assert prefix_aware(asked, Random(5)).chosen.worker.instance_id == "w13"
    assert len(looked) < 30


def test_the_longest_prefix_wins() -> None:
    workers = [worker(f"w{i}") for i in range(6)]
    asked = query(workers, prompt_tokens=600, matched={"w1": 64, "w4": 512})
    assert all(prefix_aware(asked, Random(i)).chosen.worker.instance_id == "w4" for i in range(20))


def test_load_beats_the_prefix() -> None:
    workers = [worker("seen", 100_000), *(worker(f"w{i}", 10) for i in range(6))]
    asked = query(workers, prompt_tokens=2000, matched={"seen": 1984})
    assert all(
        prefix_aware(asked, Random(i)).chosen.worker.instance_id != "seen" for i in range(20)
    )


def test_in_flight_is_unreported_until_the_next_heartbeat() -> None:
    flights, a = InFlight(), worker("a").model_copy(update={"seq": 4})
    ticket = flights.begin(a, 100)
    assert flights.unreported(a) == 100
    later = a.model_copy(update={"seq": 5})
    assert flights.unreported(later) == 0
    second = flights.begin(later, 30)
    assert flights.unreported(later) == 30
    assert (flights.count("a"), flights.count()) == (2, 2)
    flights.end(ticket)
    assert flights.unreported(later) == 30
    flights.end(second)
    assert (flights.count("a"), flights.count(), flights.unreported(later)) == (0, 0, 0)


def test_a_fingerprint_is_shared_as_far_as_the_prompts_are() -> None:
    one = fingerprint(text("x" * CHUNK_BYTES + "a" * CHUNK_BYTES))
    two = fingerprint(text("x" * CHUNK_BYTES + "b" * CHUNK_BYTES))
    assert one[0] == two[0]
    assert one[1] != two[1]
    assert len(one) == 2
    assert fingerprint(text("x" * (CHUNK_BYTES - 1))) == ()


def test_tenants_and_models_share_no_fingerprint() -> None:
    prompt = "x" * CHUNK_BYTES
    seen = {fingerprint(text(prompt, **more)) for more in ({}, {"cache_salt": "s"}, {"model": "n"})}
    assert len(seen) == 3


def test_messages_and_ids_have_fingerprints() -> None:
    turns = [{"role": "user", "content": "x" * 2 * CHUNK_BYTES}]
    assert len(fingerprint(text(None, messages=turns))) == 2
    assert len(fingerprint(text(None, prompt_ids=[7] * CHUNK_TOKENS))) == 1
    assert prompt_tokens(text(None, prompt_ids=[1, 2, 3])) == 3


def test_the_index_matches_the_longest_prefix_and_forgets_the_oldest() -> None:
    index = PrefixIndex(capacity=4)
    chain = tuple(bytes([i]) for i in range(3))
    index.record(chain, "a")
    index.record(chain[:1], "b")
    assert index.matched_tokens(chain, ["a", "b"]) == {"a": 3 * CHUNK_TOKENS, "b": CHUNK_TOKENS}
    assert index.matched_tokens(chain, ["b"]) == {"b": CHUNK_TOKENS}
    index.record((b"x", b"y", b"z"), "c")
    assert len(index) == 4
    assert index.matched_tokens(chain, ["a"]) == {"a": CHUNK_TOKENS}
