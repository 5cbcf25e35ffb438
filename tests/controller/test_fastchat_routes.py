"""FastChat's routes: the exact bodies, and what differs on purpose."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from controller.app import create_app
from controller.config import ControllerSettings
from protocol.fastchat import NETWORK_ERROR_TEXT

Start = Callable[..., httpx.Client]
Serve = Callable[[ASGIApp], str]


def register(client: httpx.Client, name: str, *models: str, **fields: Any) -> httpx.Response:
    status = {"model_names": list(models), "speed": 1, "queue_length": 0}
    body = {"worker_name": name, "check_heart_beat": True, "worker_status": status} | fields
    return client.post("/register_worker", json=body)


def address(client: httpx.Client, model: str) -> str:
    answer = client.post("/get_worker_address", json={"model": model})
    assert set(answer.json()) == {"address"}
    found = answer.json()["address"]
    assert isinstance(found, str)
    return found


def beat(client: httpx.Client, name: str, queue_length: int = 0) -> Any:
    body = {"worker_name": name, "queue_length": queue_length}
    return client.post("/receive_heart_beat", json=body).json()


def test_registration_answers_null_and_the_model_is_listed(start: Start) -> None:
    client = start()
    assert register(client, "http://a:1/", "m1", "m2").json() is None
    assert client.post("/list_models").json() == {"models": ["m1", "m2"]}
    assert address(client, "m2") == "http://a:1"
    assert address(client, "unknown") == ""


def test_the_connection_test_says_success(start: Start) -> None:
    assert start().get("/test_connection").json() == "success"


def test_heartbeats_tell_whether_the_worker_is_known(start: Start) -> None:
    client = start()
    assert beat(client, "http://a:1") == {"exist": False}
    register(client, "http://a:1", "m")
    assert beat(client, "http://a:1/", 4) == {"exist": True}
    assert client.post("/worker_get_status").json()["queue_length"] == 4


def test_models_are_listed_by_kind(start: Start) -> None:
    client = start()
    register(client, "http://a:1", "text")
    register(client, "http://b:1", "image", multimodal=True)
    assert client.post("/list_models").json() == {"models": ["image", "text"]}
    assert client.post("/list_multimodal_models").json() == {"models": ["image"]}
    assert client.post("/list_language_models").json() == {"models": ["text"]}


def test_the_status_is_the_sum_of_all_workers(start: Start) -> None:
    client = start()
    empty = client.post("/worker_get_status").json()
    assert empty == {"model_names": [], "speed": 0, "queue_length": 0}
    status = {"model_names": ["b", "a"], "speed": 2, "queue_length": 3}
    register(client, "http://a:1", worker_status=status)
    register(client, "http://b:1", "c")
    answer = client.post("/worker_get_status")
    assert answer.text == '{"model_names":["a","b","c"],"speed":3,"queue_length":3}'


def test_refreshing_answers_null_and_keeps_the_living(start: Start) -> None:
    client = start()
    register(client, "http://nobody-dials-this.invalid:1", "m")
    assert client.post("/refresh_all_workers").json() is None
    assert client.post("/list_models").json() == {"models": ["m"]}


def test_native_workers_are_found_too_while_they_are_ready(start: Start) -> None:
    client = start()
    worker = {"instance_id": "w", "address": "http://n:1", "models": [{"name": "m"}]}
    client.put("/fleet/workers/w", json=worker)
    assert address(client, "m") == "http://n:1"
    client.put("/fleet/workers/w", json=worker | {"seq": 1, "state": "draining"})
    assert address(client, "m") == ""
    assert client.post("/list_models").json() == {"models": []}


def test_the_shortest_queue_counts_what_it_sent_until_the_next_heartbeat(start: Start) -> None:
    client = start(dispatch_method="shortest_queue")
    register(client, "http://a:1", "m")
    register(client, "http://b:1", "m")
    assert [address(client, "m")[-3] for _ in range(4)] == ["a", "b", "a", "b"]
    beat(client, "http://a:1", 0)
    assert [address(client, "m")[-3] for _ in range(2)] == ["a", "a"]
    beat(client, "http://a:1", 9)
    assert address(client, "m") == "http://b:1"


def test_the_lottery_draws_by_speed(serve: Serve) -> None:
    settings = ControllerSettings(dispatch_method="lottery")
    url = serve(create_app(settings, rng=random.Random(3)))
    with httpx.Client(base_url=url) as client:
        for name, speed in (("a", 1), ("b", 3)):
            status = {"model_names": ["m"], "speed": speed, "queue_length": 0}
            register(client, f"http://{name}:1", worker_status=status)
        drawn = [address(client, "m")[-3] for _ in range(40)]
    assert 22 < drawn.count("b") < 38


def test_the_lease_is_fastchats_own(start: Start) -> None:
    client = start(heartbeat_ttl=0.2)
    register(client, "http://a:1", "m")
    register(client, "http://b:1", "m", check_heart_beat=False)
    time.sleep(0.6)
    leases = [each["lease_left_s"] for each in client.get("/fleet/workers").json()["workers"]]
    assert 80 < leases[0] <= 90
    assert leases[1] is None


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"worker_status": None}, "missing_required_parameter", "worker_status"),
        ({"worker_name": "http://169.254.169.254/latest"}, "invalid_value", "worker_name"),
        ({"worker_name": "gopher://h:1"}, "invalid_value", "worker_name"),
        ({"worker_status": {"model_names": [""]}}, "invalid_value", "worker_status.model_names"),
    ],
)
def test_a_bad_registration_is_refused_by_name(
    start: Start, fields: dict[str, Any], code: str, param: str
) -> None:
    client = start()
    refused = register(client, **({"name": "http://a:1"} | {"worker_name": "http://a:1"} | fields))
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert (error["code"], error["param"]) == (code, param)
    assert client.post("/list_models").json() == {"models": []}


# the relay


class FakeWorker:
    """A worker that streams as it is told, and notes what it was asked."""

    def __init__(self, *chunks: bytes, then: str = "end") -> None:
        self.asked: list[tuple[bytes, str | None]] = []
        self.closed = threading.Event()
        self._chunks = chunks
        self._then = then
        self.app = Starlette(
            routes=[Route("/worker_generate_stream", self._answer, methods=["POST"])]
        )

    async def _answer(self, request: Request) -> Response:
        self.asked.append((await request.body(), request.headers.get("authorization")))
        if self._then == "redirect":
            return RedirectResponse("http://127.0.0.1:1/elsewhere", status_code=307)
        if self._then == "refuse":
            return Response("no", status_code=500)
        return StreamingResponse(self._stream())

    async def _stream(self) -> AsyncIterator[bytes]:
        try:
            for chunk in self._chunks:
                yield chunk
            if self._then == "hang":
                await asyncio.sleep(30)
        finally:
            self.closed.set()


def frames(response: httpx.Response) -> list[Any]:
    assert response.status_code == 200
    *whole, rest = response.content.split(b"\0")
    assert rest == b""
    return [json.loads(frame) for frame in whole]


def generate(client: httpx.Client, **fields: Any) -> httpx.Response:
    return client.post("/worker_generate_stream", json={"model": "m", "prompt": "p"} | fields)


def test_a_stream_is_relayed_frame_by_frame_with_its_whole_body(start: Start, serve: Serve) -> None:
    worker = FakeWorker(b'{"text":"a"}\0{"te', b'xt":"ab"}\0')
    client = start(cluster_token="token")
    client.headers["authorization"] = "Bearer token"
    register(client, serve(worker.app), "m")
    assert frames(generate(client, images=[1])) == [{"text": "a"}, {"text": "ab"}]
    ((body, token),) = worker.asked
    assert json.loads(body) == {"model": "m", "prompt": "p", "images": [1]}
    assert token == "Bearer token"


def test_nobody_to_relay_to_is_an_error_frame(start: Start) -> None:
    assert frames(generate(start())) == [{"text": NETWORK_ERROR_TEXT, "error_code": 50005}]


def test_without_a_token_only_loopback_is_dialed(start: Start) -> None:
    client = start()
    register(client, "http://worker.invalid:1", "m")
    assert frames(generate(client))[0]["error_code"] == 50005


@pytest.mark.parametrize(
    ("worker", "before"),
    [
        (FakeWorker(then="redirect"), []),
        (FakeWorker(then="refuse"), []),
        (FakeWorker(b'{"text":"a"}\0{"text'), [{"text": "a"}]),
    ],
    ids=["redirect", "refuse", "cut"],
)
def test_a_failing_worker_is_an_error_frame_after_what_came(
    start: Start, serve: Serve, worker: FakeWorker, before: list[Any]
) -> None:
    client = start()
    register(client, serve(worker.app), "m")
    error = {"text": NETWORK_ERROR_TEXT, "error_code": 50006}
    assert frames(generate(client)) == [*before, error]


def test_a_dead_worker_is_an_error_frame(start: Start) -> None:
    client = start()
    register(client, "http://127.0.0.1:1", "m")
    assert frames(generate(client))[0]["error_code"] == 50006
    assert 'relays_total{outcome="failed"} 1.0' in client.get("/metrics").text


def test_a_caller_that_goes_away_closes_the_workers_stream(start: Start, serve: Serve) -> None:
    worker = FakeWorker(b'{"text":"a"}\0', then="hang")
    client = start()
    register(client, serve(worker.app), "m")
    with client.stream("POST", "/worker_generate_stream", json={"model": "m"}) as answer:
        assert next(answer.iter_bytes()) == b'{"text":"a"}\0'
    assert worker.closed.wait(5)
    deadline = time.perf_counter() + 5
    while 'relays_total{outcome="cancelled"} 1.0' not in client.get("/metrics").text:
        assert time.perf_counter() < deadline


def test_a_generation_without_model_is_refused(start: Start) -> None:
    refused = start().post("/worker_generate_stream", json={"prompt": "p"})
    assert refused.json()["error"]["param"] == "model"
