from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from aiohttp import web

from worker.registration import Registrar, Reporter


@dataclass
class Controller:
    """A scripted controller: keeps what it is sent, answers what it is told to."""

    url: str = ""
    puts: list[dict[str, Any]] = field(default_factory=list)
    posts: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    deletes: list[str] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)
    native: bool = True
    answer_delay_s: float = 0.0
    knows: bool = True
    answer: Callable[[dict[str, Any]], tuple[int, dict[str, Any]]] = lambda _: (
        200,
        {"accepted": True},
    )

    async def put(self, request: web.Request) -> web.Response:
        if not self.native:
            raise web.HTTPNotFound
        record = await request.json()
        assert record["instance_id"] == request.match_info["id"]
        self.tokens.add(request.headers.get("Authorization"))
        self.puts.append(record)
        status, body = self.answer(record)
        if self.answer_delay_s:
            await asyncio.sleep(self.answer_delay_s)
        return web.json_response(body, status=status)

    async def delete(self, request: web.Request) -> web.Response:
        self.deletes.append(request.match_info["id"])
        return web.Response(status=204)

    async def post(self, request: web.Request) -> web.Response:
        self.posts.append((request.path, await request.json()))
        if request.path == "/receive_heart_beat":
            return web.json_response({"exist": self.knows})
        return web.json_response(None)


@pytest.fixture
async def controller() -> AsyncIterator[Controller]:
    made = Controller()
    app = web.Application()
    app.router.add_put("/fleet/workers/{id}", made.put)
    app.router.add_delete("/fleet/workers/{id}", made.delete)
    app.router.add_post("/register_worker", made.post)
    app.router.add_post("/receive_heart_beat", made.post)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield made
    await runner.cleanup()


async def until(condition: Callable[[], object], timeout_s: float = 2.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 -- any condition, not an event's
            await asyncio.sleep(0.005)


FAST = {"no_register": False, "heartbeat_interval": 0.02}


async def test_whole_records_come_again_and_again(
    start_worker: Any, controller: Controller
) -> None:
    worker = await start_worker(controller_address=(controller.url,), **FAST, cluster_token="t")
    await until(lambda: len(controller.puts) >= 3)
    first, second = controller.puts[:2]
    assert first["seq"] < second["seq"]
    assert first["state"] == "ready"
    assert first["address"] == worker.url
    assert first["models"][0]["name"] == "sim"
    assert controller.tokens == {"Bearer t"}


async def test_the_load_is_reported(start_worker: Any, controller: Controller) -> None:
    worker = await start_worker(
        controller_address=(controller.url,), sim_ttft_ms=60_000, sim_max_running=1, **FAST
    )
    tasks = [asyncio.create_task(worker.events(prompt="abc")) for _ in range(3)]
    await until(lambda: controller.puts and controller.puts[-1]["load"]["waiting"] == 2)
    record = controller.puts[-1]
    assert (record["load"]["running"], record["load"]["waiting_tokens"]) == (1, 6)
    assert (record["busy"], record["queue_length"]) == (True, 3)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_nothing_is_sent_before_the_model_is_ready(
    start_worker: Any, controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    from worker.engine.sim import SimEngine

    loaded = asyncio.Event()
    start = SimEngine.start

    async def slow_start(self: SimEngine) -> None:
        await loaded.wait()
        await start(self)

    monkeypatch.setattr(SimEngine, "start", slow_start)
    await start_worker(ready=False, controller_address=(controller.url,), **FAST)
    await asyncio.sleep(0.1)
    assert controller.puts == []
    loaded.set()
    await until(lambda: controller.puts)


async def test_a_conflict_is_outranked(start_worker: Any, controller: Controller) -> None:
    def answer(record: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if record["incarnation"] <= 7:
            return 409, {"accepted": False, "incarnation": 7}
        return 200, {"accepted": True}

    controller.answer = answer
    await start_worker(controller_address=(controller.url,), **FAST)
    await until(lambda: len(controller.puts) >= 3)
    assert [record["incarnation"] for record in controller.puts[:3]] == [0, 8, 8]


async def test_draining_is_told_at_once_and_leaving_too(
    start_worker: Any, controller: Controller
) -> None:
    worker = await start_worker(
        controller_address=(controller.url,), no_register=False, heartbeat_interval=30
    )
    await until(lambda: controller.puts)
    worker.exit_request.ask(0)
    await worker.drain()
    await until(lambda: controller.puts[-1]["state"] == "draining", 0.5)


async def test_leaving_is_a_delete(controller: Controller, start_worker: Any) -> None:
    worker = await start_worker()
    registrar = Registrar(
        [controller.url],
        Reporter(worker.runtime, worker.url),
        interval_s=0.02,
        cluster_token="",
    )
    registrar.start()
    await until(lambda: controller.puts)
    await registrar.close()
    assert controller.deletes == [worker.runtime.instance_id]


async def test_leaving_in_the_middle_of_the_first_heartbeat_is_a_delete_too(
    controller: Controller, start_worker: Any
) -> None:
    """The controller has stored the record although its answer was never read."""
    worker = await start_worker()
    controller.answer_delay_s = 1.0
    registrar = Registrar(
        [controller.url], Reporter(worker.runtime, worker.url), interval_s=0.02, cluster_token=""
    )
    registrar.start()
    await until(lambda: controller.puts)
    await registrar.close()
    assert controller.deletes == [worker.runtime.instance_id]


async def test_a_dead_controller_delays_no_other_and_is_logged_once(
    start_worker: Any, controller: Controller, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    dead = "http://127.0.0.1:9"
    await start_worker(controller_address=(dead, controller.url), **FAST)
    await until(lambda: len(controller.puts) >= 10)
    lines = [message for message in caplog.messages if dead in message]
    assert lines == [f"controller {dead} does not take the heartbeat: connection refused"]


async def test_a_changed_reason_is_told_and_metrics_say_who_takes_the_reports(
    start_worker: Any, controller: Controller, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    dead = "http://127.0.0.1:9"
    worker = await start_worker(controller_address=(dead, controller.url), **FAST)
    await until(lambda: controller.puts)
    controller.answer = lambda _: (401, {})
    await until(lambda: "the controller wants the cluster token" in caplog.text)
    assert await gauges(worker.url) == {dead: 0.0, controller.url: 0.0}
    controller.answer = lambda _: (500, {})
    await until(lambda: "it answered with status 500" in caplog.text)
    controller.answer = lambda _: (200, {"accepted": True})
    await until(lambda: sum("registered with" in message for message in caplog.messages) == 2)
    assert await gauges(worker.url) == {dead: 0.0, controller.url: 1.0}


async def gauges(url: str) -> dict[str, float]:
    """`trireme_worker_registered` by controller."""
    async with httpx.AsyncClient() as client:
        text = (await client.get(f"{url}/metrics")).text
    found = re.findall(
        r'^trireme_worker_registered\{controller="(.*?)"\} (\S+)$', text, re.MULTILINE
    )
    return {controller: float(value) for controller, value in found}


async def test_a_controller_that_comes_back_is_found_again(
    start_worker: Any, controller: Controller, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await start_worker(controller_address=(controller.url,), **FAST)
    await until(lambda: controller.puts)
    controller.answer = lambda _: (500, {})
    await until(lambda: any("does not take" in message for message in caplog.messages))
    controller.answer = lambda _: (200, {"accepted": True})
    await until(lambda: sum("registered with" in message for message in caplog.messages) == 2)


async def test_a_fastchat_controller_gets_fastchats_registration(
    start_worker: Any, controller: Controller
) -> None:
    controller.native = False
    worker = await start_worker()
    registrar = Registrar(
        [controller.url],
        Reporter(worker.runtime, worker.url),
        interval_s=0.02,
        cluster_token="",
        fastchat_interval_s=0.03,
    )
    registrar.start()
    await until(lambda: len(controller.posts) >= 3)
    assert controller.posts[0] == (
        "/register_worker",
        {
            "worker_name": worker.url,
            "check_heart_beat": True,
            "worker_status": {"model_names": ["sim"], "speed": 1, "queue_length": 0},
            "multimodal": False,
        },
    )
    assert controller.posts[1] == (
        "/receive_heart_beat",
        {"worker_name": worker.url, "queue_length": 0},
    )
    controller.knows = False
    seen = len(controller.posts)
    await until(lambda: "/register_worker" in [path for path, _ in controller.posts[seen:]])
    await registrar.close()
    assert controller.deletes == []


async def test_a_fastchat_controller_hears_of_a_drain_as_a_worker_without_models(
    start_worker: Any, controller: Controller
) -> None:
    """Its gateways ask it for each request, so nobody need be waited for."""
    controller.native = False
    worker = await start_worker(
        controller_address=(controller.url,), no_register=False, heartbeat_interval=30
    )
    await until(lambda: controller.posts)
    await asyncio.wait_for(worker.drain(), 4)  # a lease is 5 s
    path, told = controller.posts[-1]
    assert (path, told["worker_status"]["model_names"]) == ("/register_worker", [])
