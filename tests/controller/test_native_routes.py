"""Native fleet routes over real sockets: records, snapshots, long polls, token, limits."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from controller import feed, followers
from protocol.fleet import FleetSnapshot, HeartbeatAnswer

Start = Callable[..., httpx.Client]


def record(name: str = "w1", **fields: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "instance_id": name,
        "address": f"http://{name}:21002",
        "models": [{"name": "m"}],
    }
    return values | fields


def put(client: httpx.Client, worker: dict[str, Any]) -> httpx.Response:
    return client.put(f"/fleet/workers/{worker['instance_id']}", json=worker)


def fleet(client: httpx.Client, **query: Any) -> FleetSnapshot:
    return FleetSnapshot.model_validate_json(client.get("/fleet", params=query).content)


def error_of(response: httpx.Response) -> tuple[int, str, str | None]:
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message", "param", "retry_after_s"}
    return response.status_code, body["error"]["code"], body["error"]["param"]


def test_a_record_is_answered_with_its_lease_and_seen_in_the_fleet(start: Start) -> None:
    client = start(heartbeat_ttl=7.5)
    answer = HeartbeatAnswer.model_validate_json(put(client, record(seq=1)).content)
    assert answer == HeartbeatAnswer(accepted=True, lease_ms=7500)
    snapshot = fleet(client)
    assert [worker.instance_id for worker in snapshot.workers] == ["w1"]
    assert not snapshot.complete
    stale = HeartbeatAnswer.model_validate_json(put(client, record(seq=1)).content)
    assert (stale.accepted, stale.stale) == (False, True)


def test_records_are_counted_by_what_became_of_them(start: Start) -> None:
    client = start()
    for one in (record(seq=1), record(seq=2), record(seq=3, queue_length=4), record(seq=3)):
        put(client, one)
    put(client, record("w2", address="http://w1:21002"))
    shown = client.get("/metrics").text.splitlines()
    counted = [line for line in shown if line.startswith("trireme_controller_records_total")]
    assert counted == [
        f'trireme_controller_records_total{{outcome="{outcome}",wire="native"}} 1.0'
        for outcome in ("changed", "conflict", "joined", "renewed", "stale")
    ]
    assert "# TYPE trireme_controller_records_total counter" in shown


def test_a_taken_address_is_a_conflict_with_the_stored_incarnation(start: Start) -> None:
    client = start()
    put(client, record("a", address="http://h:1", incarnation=4))
    refused = put(client, record("b", address="http://h:1"))
    assert refused.status_code == 409
    answer = HeartbeatAnswer.model_validate_json(refused.content)
    assert answer == HeartbeatAnswer(accepted=False, incarnation=4)
    assert put(client, record("b", address="http://h:1", incarnation=5)).status_code == 200
    assert fleet(client).left == ("a",)


def test_who_leaves_is_gone_and_stays_out(start: Start) -> None:
    client = start()
    put(client, record())
    assert client.delete("/fleet/workers/w1").status_code == 204
    assert put(client, record(seq=5)).json()["stale"] is True
    snapshot = fleet(client)
    assert (snapshot.workers, snapshot.left) == ((), ("w1",))


def test_a_lease_runs_out_by_the_clock(start: Start) -> None:
    client = start(heartbeat_ttl=0.3)
    put(client, record())
    before = fleet(client)
    after = fleet(client, after=before.version, epoch=before.epoch, wait_s=5)
    while after.workers:
        after = fleet(client, after=after.version, epoch=after.epoch, wait_s=5)
    assert after.complete
    assert "trireme_controller_expirations_total 1.0" in client.get("/metrics").text


def test_a_change_reaches_a_waiting_poll_at_once(start: Start) -> None:
    client = start(heartbeat_ttl=60)
    known = fleet(client)
    delays = []

    def wait_beyond(seen: FleetSnapshot) -> tuple[FleetSnapshot, float]:
        later = fleet(client, after=seen.version, epoch=seen.epoch, wait_s=20)
        return later, time.perf_counter()

    with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=client.base_url) as other:
        for number in range(10):
            poll = pool.submit(wait_beyond, known)
            time.sleep(0.03)
            assert not poll.done()
            changed_at = time.perf_counter()
            put(other, record(seq=number, state="ready" if number % 2 else "draining"))
            known, seen_at = poll.result(10)
            delays.append(seen_at - changed_at)
            assert [worker.seq for worker in known.workers] == [number]
    assert sorted(delays)[3] < 0.1


def test_load_alone_is_gathered_a_moment_and_then_published(start: Start) -> None:
    client = start(heartbeat_ttl=60)
    put(client, record())
    known = fleet(client)
    stop = threading.Event()
    sent = 0

    def beat() -> None:
        nonlocal sent
        with httpx.Client(base_url=client.base_url) as other:
            while not stop.is_set():
                sent += 1
                put(other, record(seq=sent, load={"waiting": sent}))

    with ThreadPoolExecutor(1) as pool:
        beating = pool.submit(beat)
        began = time.perf_counter()
        answers = 0
        while time.perf_counter() < began + 0.5:
            later = fleet(client, after=known.version, epoch=known.epoch, wait_s=20)
            assert later.version > known.version
            known = later
            answers += 1
        elapsed = time.perf_counter() - began
        stop.set()
        beating.result(10)
    assert 1 <= answers <= elapsed / feed.LOAD_DELAY_S + 2
    assert sent > answers


def test_a_poll_without_a_change_returns_when_its_wait_is_over(start: Start) -> None:
    client = start(heartbeat_ttl=60)
    known = fleet(client)
    began = time.perf_counter()
    assert fleet(client, after=known.version, epoch=known.epoch, wait_s=0.2) == known
    assert time.perf_counter() - began >= 0.2


def test_a_version_of_another_process_means_nothing(start: Start) -> None:
    client = start()
    began = time.perf_counter()
    fleet(client, after=10**9, epoch="another", wait_s=20)
    assert time.perf_counter() - began < 5


def test_a_poll_that_nobody_reads_is_ended(start: Start) -> None:
    client = start(heartbeat_ttl=60)
    known = fleet(client)
    query = {"after": known.version, "epoch": known.epoch, "wait_s": 20}
    with (
        httpx.Client(base_url=client.base_url, timeout=0.2) as impatient,
        pytest.raises(httpx.ReadTimeout),
    ):
        impatient.get("/fleet", params=query)
    deadline = time.perf_counter() + 5
    while "polls_waiting 0.0" not in client.get("/metrics").text:
        assert time.perf_counter() < deadline


def test_a_gateway_whose_poll_breaks_off_is_forgotten_soon(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(followers, "RETURN_S", 0.0)
    client = start(heartbeat_ttl=60)
    query = {**_after(fleet(client, gateway="g")), "wait_s": 20, "gateway": "g"}
    with (
        httpx.Client(base_url=client.base_url, timeout=0.2, trust_env=False) as impatient,
        pytest.raises(httpx.ReadTimeout),
    ):
        impatient.get("/fleet", params=query)
    deadline = time.perf_counter() + 5
    while "trireme_controller_gateways 0.0" not in client.get("/metrics").text:
        assert time.perf_counter() < deadline


def test_too_many_polls_are_refused(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "MAX_WAITERS", 0)
    client = start(heartbeat_ttl=60)
    known = fleet(client)
    refused = client.get("/fleet", params={**_after(known), "wait_s": 5})
    assert error_of(refused) == (503, "overloaded", None)
    assert refused.headers["retry-after"] == "1"


def _after(known: FleetSnapshot) -> dict[str, Any]:
    return {"after": known.version, "epoch": known.epoch}


def test_people_see_ages(start: Start) -> None:
    client = start(heartbeat_ttl=5)
    put(client, record())
    (worker,) = client.get("/fleet/workers").json()["workers"]
    assert worker["instance_id"] == "w1"
    assert 0 <= worker["heard_s"] <= worker["known_s"] < 5
    assert 0 < worker["lease_left_s"] <= 5
    assert worker["held"] is False


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"instance_id": "other"}, "instance_id"),
        ({"wire": "fastchat"}, "wire"),
        ({"address": "http://169.254.169.254"}, "address"),
        ({"address": "file:///etc/passwd"}, "address"),
        ({"incarnation": -1}, "incarnation"),
        ({"models": [{"name": ""}]}, "models.0.name"),
        ({"models": None}, "models"),
        ({"load": {"prefill_tps": float("inf")}}, "load.prefill_tps"),
    ],
)
def test_a_bad_record_is_refused_by_name(start: Start, fields: dict[str, Any], param: str) -> None:
    client = start()
    answer = client.put("/fleet/workers/w1", content=json.dumps(record(**fields)))
    assert error_of(answer) == (400, "invalid_value", param)
    assert not fleet(client).workers


def test_a_missing_field_is_named(start: Start) -> None:
    answer = start().put("/fleet/workers/w1", json={"instance_id": "w1", "models": []})
    assert error_of(answer) == (400, "missing_required_parameter", "address")


def test_a_body_that_is_no_json_object_is_refused(start: Start) -> None:
    client = start()
    assert error_of(client.put("/fleet/workers/w1", content=b"{"))[:2] == (400, "invalid_body")
    assert error_of(client.put("/fleet/workers/w1", content=b"[1]"))[:2] == (400, "invalid_body")


def test_a_body_beyond_the_limit_is_refused(start: Start) -> None:
    client = start()
    big = client.put("/fleet/workers/w1", content=b" " * 300_000)
    assert error_of(big) == (413, "request_too_large", None)


def test_a_full_registry_says_so(start: Start) -> None:
    client = start(max_workers=1)
    put(client, record("a"))
    assert error_of(put(client, record("b"))) == (503, "overloaded", None)


def test_unknown_routes_methods_and_parameters_are_errors_in_json(start: Start) -> None:
    client = start()
    assert error_of(client.get("/nowhere")) == (404, "unknown_url", None)
    assert error_of(client.post("/fleet")) == (405, "method_not_supported", None)
    assert error_of(client.get("/fleet?wait_s=nan")) == (400, "invalid_value", "wait_s")
    assert error_of(client.get("/fleet?after=-1")) == (400, "invalid_value", "after")
    assert error_of(client.get("/fleet?after=")) == (400, "invalid_value", "after")
    assert error_of(client.get("/fleet?changes=perhaps")) == (400, "invalid_value", "changes")
    assert error_of(client.get(f"/fleet?gateway={65 * 'g'}")) == (400, "invalid_value", "gateway")
    assert client.get("/fleet?after=-1&after=2&another=1").status_code == 200, "the last counts"


def test_with_a_cluster_token_everything_but_health_needs_it(start: Start) -> None:
    client = start(cluster_token="geheim-ß")
    for path in ("/health", "/healthz", "/livez", "/readyz", "/ping", "/version", "/metrics"):
        assert client.get(path).status_code == 200
    requests = [
        ("GET", "/fleet"),
        ("GET", "/fleet/workers"),
        ("PUT", "/fleet/workers/w1"),
        ("DELETE", "/fleet/workers/w1"),
        ("POST", "/register_worker"),
        ("POST", "/receive_heart_beat"),
        ("POST", "/refresh_all_workers"),
        ("POST", "/list_models"),
        ("POST", "/list_multimodal_models"),
        ("POST", "/list_language_models"),
        ("POST", "/get_worker_address"),
        ("POST", "/worker_get_status"),
        ("POST", "/worker_generate_stream"),
        ("GET", "/test_connection"),
        ("GET", "/openapi.json"),
        ("GET", "/docs"),
        ("GET", "/health/"),
        ("GET", "/nowhere"),
    ]
    for method, path in requests:
        refused = client.request(method, path)
        assert error_of(refused) == (401, "missing_api_key", None), path
        assert refused.headers["www-authenticate"] == "Bearer"
        wrong = client.request(method, path, headers={b"authorization": "Bearer ßß".encode()})
        assert error_of(wrong) == (401, "invalid_api_key", None), path
    right = {b"authorization": "Bearer geheim-ß".encode()}
    assert client.get("/fleet", headers=right).status_code == 200


def test_health_and_version(start: Start) -> None:
    client = start()
    assert client.get("/readyz").json() == {"status": "ready"}
    assert client.get("/version").json()["tier"] == "controller"
    assert "trireme_controller_warming 1.0" in client.get("/metrics").text


def test_a_poll_may_ask_for_changes_alone(start: Start) -> None:
    client = start()
    for name in ("a", "b"):
        put(client, record(name))
    known = fleet(client)
    put(client, record("b", seq=1, queue_length=3))
    query = {"after": known.version, "epoch": known.epoch}
    changes = fleet(client, **query, changes=True)
    assert ([one.instance_id for one in changes.workers], changes.since) == (["b"], known.version)
    assert [one.queue_length for one in known.updated(changes).workers] == [0, 3]
    whole = fleet(client, **query)
    assert (len(whole.workers), whole.since) == (2, None)
    other = fleet(client, **(query | {"epoch": "another"}), changes=True)
    assert (len(other.workers), other.since) == (2, None)


def test_a_draining_worker_hears_when_every_gateway_knows_and_who_could_go_on(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(followers, "RETURN_S", 0.0)
    client = start(heartbeat_ttl=60)
    put(client, record("w1", seq=1))
    put(client, record("w2", seq=1))
    put(client, record("w3", seq=1, models=[{"name": "m", "digest": "another"}]))
    known = fleet(client, gateway="g")
    assert "trireme_controller_gateways 1.0" in client.get("/metrics").text

    def drained(seq: int) -> HeartbeatAnswer:
        draining = record("w1", seq=seq, state="draining")
        return HeartbeatAnswer.model_validate_json(put(client, draining).content)

    assert not drained(2).acknowledged
    seen = fleet(client, gateway="g", after=known.version, epoch=known.epoch)
    assert seen.version > known.version
    assert not drained(3).acknowledged, "it was told, and has not said that it has taken it in"
    fleet(client, gateway="g", after=seen.version, epoch=known.epoch)
    assert drained(4) == HeartbeatAnswer(
        accepted=True, lease_ms=60_000, acknowledged=True, successors=1
    )
    fleet(client, gateway="late")
    assert not drained(5).acknowledged
    assert client.delete("/fleet/gateways/late").status_code == 204
    assert drained(6).acknowledged
