"""A worker's drain inside one event loop: who is waited for, what is handed over, the route."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from protocol.generation import Delta, Done, Failed

FOREVER = {"sim_itl_ms": 20, "sim_tokens": 10_000}


class Controller:
    """Answers heartbeats as it is told to; keeps their states."""

    def __init__(self) -> None:
        self.url = ""
        self.answer: dict[str, Any] = {"accepted": True, "lease_ms": 5000}
        self.states: list[str] = []
        self.losses = 0
        """Answers yet to be lost."""
        self.stop: Callable[[], Awaitable[None]]

    async def put(self, request: web.Request) -> web.Response:
        self.states.append((await request.json())["state"])
        if self.losses:
            self.losses -= 1
            raise web.HTTPServiceUnavailable
        return web.json_response(self.answer)

    async def delete(self, _request: web.Request) -> web.Response:
        return web.Response(status=204)


@pytest.fixture
async def controller() -> AsyncIterator[Controller]:
    made = Controller()
    app = web.Application()
    app.router.add_put("/fleet/workers/{id}", made.put)
    app.router.add_delete("/fleet/workers/{id}", made.delete)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    made.stop = runner.cleanup
    yield made
    await runner.cleanup()


async def registered(start_worker: Any, controller: Controller, **settings: Any) -> Any:
    worker = await start_worker(
        controller_address=(controller.url,), no_register=False, heartbeat_interval=30, **settings
    )
    await worker.until(lambda: controller.states)
    return worker


async def drain(worker: Any, *, grace_s: float) -> None:
    """As `trireme drain` asks for it: requests that nobody can go on with get the settings' grace
    on top."""
    asked = {"instance_id": worker.runtime.instance_id, "grace_s": grace_s}
    async with worker.http.post(worker.url + "/native/drain", json=asked) as answer:
        assert answer.status == 202
    await asyncio.wait_for(worker.drain(), 10)


async def test_it_pushes_until_the_gateways_have_acknowledged(
    start_worker: Any, controller: Controller
) -> None:
    worker = await registered(start_worker, controller)
    draining = asyncio.create_task(worker.drain())
    await worker.until(lambda: controller.states.count("draining") >= 4)
    assert not draining.done()
    controller.answer["acknowledged"] = True
    await asyncio.wait_for(draining, 3)


async def test_it_waits_one_lease_at_most(start_worker: Any, controller: Controller) -> None:
    controller.answer["lease_ms"] = 300
    worker = await start_worker(
        controller_address=(controller.url,), no_register=False, heartbeat_interval=0.05
    )
    await worker.until(lambda: len(controller.states) >= 2)  # it has read the first answer
    begun = time.monotonic()
    await worker.drain()
    assert 0.25 < time.monotonic() - begun < 3  # the lease where none is told is 5 s


async def test_a_controller_that_is_gone_is_not_waited_for(
    start_worker: Any, controller: Controller
) -> None:
    worker = await registered(start_worker, controller)
    controller.answer = {}  # no answer to a heartbeat
    await asyncio.wait_for(worker.drain(), 3)


async def test_the_log_has_its_begin_and_its_end(
    start_worker: Any, controller: Controller, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "worker.drain")
    controller.answer["acknowledged"] = True
    worker = await registered(start_worker, controller)
    await asyncio.wait_for(worker.drain(), 3)
    assert [one for one in caplog.messages if "drain" in one] == [
        "the drain begins: 0 requests run",
        "the drain is over",
    ]


async def test_one_lost_heartbeat_is_no_acknowledgement(
    start_worker: Any, controller: Controller
) -> None:
    worker = await registered(start_worker, controller)
    controller.losses = 1
    draining = asyncio.create_task(worker.drain())
    await worker.until(lambda: controller.states.count("draining") >= 4)
    assert not draining.done()
    controller.answer["acknowledged"] = True
    await asyncio.wait_for(draining, 5)


async def test_a_controller_where_nobody_listens_is_not_waited_for(
    start_worker: Any, controller: Controller
) -> None:
    worker = await registered(start_worker, controller)
    await controller.stop()
    await asyncio.wait_for(worker.drain(), 4)  # a lease is 5 s


async def test_heartbeats_go_on_at_their_pace_while_requests_end(
    start_worker: Any, controller: Controller
) -> None:
    worker = await registered(start_worker, controller, **FOREVER)
    running = asyncio.create_task(worker.events(prompt="x", sampling={"max_tokens": 25}))
    await worker.until_running()
    controller.answer["acknowledged"] = True
    await worker.drain()
    assert isinstance((await running)[-1], Done)
    assert controller.states.count("draining") < 4


async def test_what_outlasts_the_grace_is_handed_over_when_another_can_go_on(
    start_worker: Any, controller: Controller
) -> None:
    worker = await registered(start_worker, controller, drain_grace_s=600, **FOREVER)
    running = asyncio.create_task(worker.events(prompt="x"))
    await worker.until_running()
    controller.answer |= {"acknowledged": True, "successors": 1}
    begun = time.monotonic()
    await drain(worker, grace_s=0.2)
    assert time.monotonic() - begun > 0.15
    *before, last = await running
    assert isinstance(before[-1], Delta)
    assert isinstance(last, Failed)
    assert last.error().spec.retryable
    assert last.code == "draining"


async def test_what_waits_in_the_queue_is_handed_over_too(
    start_worker: Any, controller: Controller
) -> None:
    worker = await registered(
        start_worker, controller, drain_grace_s=600, limit_worker_concurrency=1, **FOREVER
    )
    tasks = [asyncio.create_task(worker.events(prompt="x")) for _ in range(3)]
    await worker.until(lambda: worker.runtime.active == 3)
    controller.answer |= {"acknowledged": True, "successors": 1}
    await drain(worker, grace_s=0)
    for events in await asyncio.gather(*tasks):
        assert events[-1].code == "draining"


async def test_with_nobody_to_go_on_they_get_the_grace_once_more(
    start_worker: Any, controller: Controller
) -> None:
    worker = await registered(start_worker, controller, drain_grace_s=0.2, **FOREVER)
    running = asyncio.create_task(worker.events(prompt="x"))
    await worker.until_running()
    controller.answer["acknowledged"] = True
    begun = time.monotonic()
    await worker.drain()
    assert 0.35 < time.monotonic() - begun < 5
    assert (await running)[-1].code == "draining"


async def test_a_fastchat_caller_who_cannot_go_on_gets_that_time_in_any_case(
    start_worker: Any, controller: Controller
) -> None:
    worker = await registered(start_worker, controller, drain_grace_s=600, **FOREVER)
    body = {"prompt": "x", "temperature": 0, "max_new_tokens": 20}
    running = asyncio.create_task(worker.post("/worker_generate", body))
    await worker.until_running()
    controller.answer |= {"acknowledged": True, "successors": 1}
    await drain(worker, grace_s=0.1)
    status, frame = await running
    assert (status, frame["error_code"], frame["finish_reason"]) == (200, 0, "length")


async def test_embeddings_of_a_fastchat_caller_are_finished_where_others_are_handed_over(
    start_worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await start_worker()
    engine, answer = worker.runtime.ready.engine, asyncio.Event()
    embed = engine.embed
    asked = 0

    async def slow(inputs: list[list[int]], tenant: str = "") -> list[list[float]]:
        nonlocal asked
        asked += 1
        await answer.wait()
        return await embed(inputs, tenant)

    monkeypatch.setattr(engine, "embed", slow)
    inputs = {"request_id": "r", "model": "sim", "inputs": ["x"]}
    native = asyncio.create_task(worker.post("/native/embed", inputs))
    fastchat = asyncio.create_task(worker.post("/worker_get_embeddings", {"input": ["x"]}))
    await worker.until(lambda: asked == 2)
    worker.runtime.handover.begin()
    _status, refused = await native
    assert "draining" in str(refused)
    answer.set()
    status, given = await fastchat
    assert status == 200
    assert len(given["embedding"]) == 1


async def test_the_route_begins_a_drain_and_says_how_it_gets_on(start_worker: Any) -> None:
    worker = await start_worker(**FOREVER)
    running = asyncio.create_task(worker.events(prompt="x"))
    await worker.until_running()
    url = worker.url + "/native/drain"
    own = {"instance_id": worker.runtime.instance_id}
    async with worker.http.post(url, json={"instance_id": "another"}) as answer:
        assert answer.status == 421
    async with worker.http.post(url, data="{}", headers={"Content-Type": "text/plain"}) as answer:
        assert answer.status == 415
    assert not worker.exit_request.drain
    async with worker.http.post(url, json=own) as answer:
        assert (answer.status, await answer.json()) == (202, {"began": True, "requests": 1})
    assert worker.exit_request.drain
    draining = asyncio.create_task(worker.drain())
    async with worker.http.post(url, json=own | {"grace_s": 0}) as answer:
        assert await answer.json() == {"began": False, "requests": 1}
    assert not draining.done(), "nobody can go on with it"
    draining.cancel()
    running.cancel()
    await asyncio.gather(running, draining, return_exceptions=True)
