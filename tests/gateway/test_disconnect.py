"""Clients that go away, or stop reading: the worker is told at once, nothing is left behind."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import aiohttp
import pytest

from gateway import connection
from tests.gateway.fakes import MODEL, FakeWorker, Stack, stack, until

BODY: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}


def released(s: Stack) -> bool:
    gateway = s.app.state.gateway
    running = gateway.metrics.registry.get_sample_value("trireme_gateway_requests_in_flight")
    return bool(running == 0) and bool(gateway.dispatcher.in_flight.count() == 0)


@pytest.mark.parametrize("hang_after", [0, 1, 3], ids=["unadmitted", "queued", "streaming"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_frees_the_worker(hang_after: int, stream: bool) -> None:
    worker = FakeWorker(hang_after=hang_after)
    async with stack(worker) as s:
        host, port = s.url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        body = aiohttp.JsonPayload(BODY | {"stream": stream}).decode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body.encode())
        await until(lambda: worker.requests)
        await asyncio.sleep(0.05)
        assert worker.running == 1
        writer.close()
        begun = time.monotonic()
        await until(lambda: worker.running == 0)
        assert time.monotonic() - begun < 0.3
        assert worker.aborted == 1
        await until(lambda: released(s))
        breakers = s.app.state.gateway.dispatcher._breakers
        assert not breakers.set_aside(time.monotonic()), "a cancel is no failure"


async def test_a_client_that_leaves_many_prompts_frees_them_all(
    http: aiohttp.ClientSession,
) -> None:
    worker = FakeWorker(hang_after=2)
    async with stack(worker) as s:
        body = {"model": MODEL, "prompt": ["a"] * 10, "stream": True}
        async with http.post(s.url + "/v1/completions", json=body) as answer:
            await answer.content.readany()
            assert worker.running == 10
            answer.close()
        await until(lambda: worker.running == 0 and released(s))


async def test_everything_is_released_after_good_answers(http: aiohttp.ClientSession) -> None:
    worker = FakeWorker()
    async with stack(worker) as s:
        for stream in (False, True):
            async with http.post(
                s.url + "/v1/chat/completions", json=BODY | {"stream": stream}
            ) as answer:
                await answer.read()
        await until(lambda: released(s))
        assert (worker.running, worker.aborted) == (0, 0)


async def test_an_idle_stream_is_kept_open_by_comments(
    http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "PING_S", 0.1)
    monkeypatch.setattr(connection, "TICK_S", 0.05)
    async with (
        stack(FakeWorker(pause_s=0.3)) as s,
        http.post(s.url + "/v1/chat/completions", json=BODY | {"stream": True}) as answer,
    ):
        raw = await answer.read()
    assert b": ping\n\n" in raw
    assert raw.endswith(b"data: [DONE]\n\n")


async def test_a_client_that_stops_reading_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    from protocol.generation import Delta, Done, Event, GenerateRequest, Started

    monkeypatch.setattr(connection, "STUCK_S", 0.3)
    monkeypatch.setattr(connection, "TICK_S", 0.05)

    def endless(_request: GenerateRequest, name: str) -> list[Event]:
        deltas: list[Event] = [Delta(0, pos, [pos], "x" * 2000) for pos in range(20_000)]
        return [Started(1, name, ""), *deltas, Done(1, len(deltas))]

    worker = FakeWorker(script=endless)
    async with stack(worker) as s:
        host, port = s.url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port), limit=1024)
        body = aiohttp.JsonPayload(BODY | {"stream": True}).decode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body.encode())
        await until(lambda: worker.running == 1)
        await until(lambda: worker.running == 0 and released(s), 15)
        assert worker.aborted == 1
        writer.close()
