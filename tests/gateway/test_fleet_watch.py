"""Long polls of controllers and probes of suspects, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator

import pytest

from gateway import fleet_watch
from gateway.fleet_view import FleetView
from gateway.fleet_watch import FleetWatch
from gateway.worker_client import open_session
from tests.gateway.fakes import FakeController, FakeWorker, record, serving, until


@contextlib.asynccontextmanager
async def watching(*addresses: str, token: str = "") -> AsyncIterator[FleetView]:
    view = FleetView(addresses)
    async with open_session() as session:
        watch = FleetWatch(view, addresses, session, token, lambda: None)
        watch.start()
        try:
            yield view
        finally:
            await watch.stop()


async def test_a_change_arrives_within_100_ms_and_without_busy_polling() -> None:
    controller = FakeController()
    async with serving(controller.app()) as address, watching(address) as view:
        await until(lambda: view.snapshot.synced)
        await asyncio.sleep(0.2)
        polls = controller.polls
        assert polls <= 2
        begun = time.monotonic()
        controller.set(record("w1"))
        await until(lambda: "w1" in view.snapshot.workers)
        assert time.monotonic() - begun < 0.1


async def test_the_cluster_token_is_sent() -> None:
    controller = FakeController(token="t")
    async with serving(controller.app()) as address:
        async with watching(address, token="t") as view:
            await until(lambda: view.snapshot.synced)
        async with watching(address, token="wrong") as view:
            await asyncio.sleep(0.1)
            assert not view.snapshot.synced


async def test_a_restarted_controller_is_heard_again() -> None:
    controller = FakeController()
    controller.set(record("w1"))
    async with contextlib.AsyncExitStack() as first:
        address = await first.enter_async_context(serving(controller.app()))
        async with watching(address) as view:
            await until(lambda: "w1" in view.snapshot.workers)
            controller.token = "refuses"
            controller.set()
            await until(lambda: view.snapshot.stale)
            assert "w1" in view.snapshot.workers
            controller.token, controller.epoch, controller.version = "", "e2", 0
            controller.complete = False
            await until(lambda: not view.snapshot.stale)
            assert "w1" in view.snapshot.workers, "it is warming: nothing is removed"


async def test_several_controllers_are_merged_and_one_that_is_gone_does_no_harm() -> None:
    one, two = FakeController(), FakeController()
    one.set(record("w1", "http://127.0.0.1:1"))
    two.set(record("w2", "http://127.0.0.1:2"))
    async with (
        serving(one.app()) as a,
        serving(two.app()) as b,
        watching(a, b, "http://127.0.0.1:9") as view,
    ):
        await until(lambda: set(view.snapshot.workers) == {"w1", "w2"})
        assert not view.snapshot.stale


@pytest.mark.parametrize("answers", [True, False])
async def test_a_worker_that_no_controller_lists_goes_unless_it_answers(
    monkeypatch: pytest.MonkeyPatch, answers: bool
) -> None:
    monkeypatch.setattr(fleet_watch, "PROBE_EVERY_S", 0.05)
    controller = FakeController()
    async with serving(controller.app()) as address, serving(FakeWorker().app()) as alive:
        controller.set(record("w1", alive if answers else "http://127.0.0.1:9"))
        async with watching(address) as view:
            await until(lambda: "w1" in view.snapshot.workers)
            controller.set()
            await until(lambda: len(view.suspects()) == 1 or not view.snapshot.workers)
            await asyncio.sleep(0.3)
            assert ("w1" in view.snapshot.workers) is answers


async def test_a_process_that_took_over_the_address_does_not_answer_for_the_one_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fleet_watch, "PROBE_EVERY_S", 0.05)
    controller = FakeController()
    async with serving(controller.app()) as address, serving(FakeWorker("w2").app()) as worker:
        controller.set(record("w1", worker, incarnation=3))
        async with watching(address) as view:
            await until(lambda: "w1" in view.snapshot.workers)
            controller.set(record("w2", worker))
            await until(lambda: set(view.snapshot.workers) == {"w2"}, 1)


async def test_a_frozen_worker_that_no_controller_lists_goes_within_a_second() -> None:
    controller = FakeController()
    frozen = socket.create_server(("127.0.0.1", 0))  # the system accepts, nobody answers
    host, port = frozen.getsockname()
    async with serving(controller.app()) as address:
        controller.set(record("w1", f"http://{host}:{port}"))
        async with watching(address) as view:
            await until(lambda: "w1" in view.snapshot.workers)
            controller.set()
            async with asyncio.timeout(1.0):
                await until(lambda: not view.snapshot.workers)
    frozen.close()


async def test_nonsense_from_a_controller_is_as_no_answer() -> None:
    from aiohttp import web

    async def nonsense(_request: web.Request) -> web.Response:
        return web.Response(text='{"epoch": 5}')

    app = web.Application()
    app.router.add_get("/fleet", nonsense)
    async with serving(app) as address, watching(address) as view:
        await asyncio.sleep(0.1)
        assert not view.snapshot.synced
        assert view.reachable == 0


async def test_a_poll_says_who_asks_and_what_it_has_seen_and_the_end_says_goodbye() -> None:
    controller = FakeController()
    async with serving(controller.app()) as address:
        async with watching(address) as view:
            controller.set(record("w1"))
            await until(lambda: "w1" in view.snapshot.workers)
            await until(lambda: controller.seen and set(controller.seen.values()) == {2})
        assert controller.goodbyes == list(controller.seen)
