"""The gateway's count of open requests against the worker's: bounds that no timing can break."""

from __future__ import annotations

import asyncio
import logging
from contextlib import ExitStack
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.drift import LOOKS, WINDOW_S, DriftWatch, OpenRequests
from tests.gateway.fakes import MODEL, FakeWorker, record, stack

US = "gateway-1"
GAUGE = "trireme_gateway_in_flight_drift{"


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Bench:
    """A watch of one worker that reports what the test says."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.watch = DriftWatch(US, self.clock)
        self.open = ExitStack()
        self.worker = record("0123456789abcdef")

    def begin(self) -> None:
        self.open.enter_context(self.watch.request(self.worker))

    def looks(self, count: int, **serving: Any) -> int:
        """The drift after so many looks, a second apart, at a worker that says that."""
        told = serving.get("serving", {})
        for _ in range(count):
            self.clock.now_s += 1
            self.watch.look([self.worker.model_copy(update={"serving": told})])
        return self.watch.drifts().get(self.worker.instance_id, 0)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_request_that_the_worker_never_gave_back_shows(bench: Bench) -> None:
    bench.begin()
    bench.open.close()
    assert bench.looks(LOOKS, serving={US: 1}) == 0, "it may be on its way"
    assert bench.looks(int(WINDOW_S) + 1, serving={US: 1}) == 1
    assert bench.looks(2, serving={}) == 0


def test_a_request_that_the_worker_does_not_know_shows(bench: Bench) -> None:
    bench.begin()
    bench.begin()
    assert bench.looks(int(WINDOW_S), serving={}) == 0
    assert bench.looks(LOOKS + 1, serving={US: 1}) == -1
    assert bench.looks(2, serving={US: 2}) == 0


def test_another_gateways_requests_are_not_ours(bench: Bench) -> None:
    bench.begin()
    assert bench.looks(3 * LOOKS, serving={US: 1, "gateway-2": 5}) == 0


def test_a_worker_that_does_not_count_has_no_drift(bench: Bench) -> None:
    bench.begin()
    bench.looks(3 * LOOKS, serving=None)
    assert bench.watch.drifts() == {}


def test_a_worker_that_comes_back_finds_its_open_requests(bench: Bench) -> None:
    bench.begin()
    bench.looks(2, serving={US: 1})
    bench.watch.look([])
    assert bench.watch.drifts() == {}
    assert bench.looks(3 * LOOKS, serving={US: 1}) == 0


def test_a_drift_is_logged_once_and_so_is_its_end(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gateway.drift")
    bench.looks(3 * LOOKS, serving={US: 2})
    bench.looks(LOOKS, serving={})
    first, second = (one.getMessage() for one in caplog.records)
    assert first == "worker 01234567 counts 2 requests more of this gateway than there are"
    assert "right again" in second


DELAY_S = st.floats(0, 0.6)
REQUEST = st.tuples(st.floats(0, 20), st.floats(0, 20), DELAY_S, DELAY_S)
"""(begin, length, way there, way back or of the abort), seconds."""


@given(
    requests=st.lists(REQUEST, max_size=40),
    ways=st.lists(DELAY_S, min_size=45, max_size=45),
    off=st.integers(-3, 3),
)
def test_whatever_the_delays_only_what_is_lost_or_leaked_shows(
    requests: list[tuple[float, float, float, float]], ways: list[float], off: int
) -> None:
    """A worker reports each second; reports, requests and ends take up to 0.6 s on their way."""
    here: list[tuple[float, float]] = [(begin, begin + took) for begin, took, _, _ in requests]
    # an end may reach the worker before the gateway (an answer) or after it (an abort)
    there = [
        (b + way, max(b + way, e + end - 0.3))
        for (b, e), (_, _, way, end) in zip(here, requests, strict=True)
    ]
    here += [(1.0, 100.0)] * -off
    there += [(1.0, 100.0)] * off
    steps = sorted(
        [(b, 0, n) for n, (b, _) in enumerate(here)] + [(e, 1, n) for n, (_, e) in enumerate(here)]
    )
    reports = [(at + ways[at], sum(b <= at < e for b, e in there)) for at in range(45)]
    counted, numbers = OpenRequests(), dict[int, int]()
    found: list[int] = []
    known = 0
    for look in range(1, 45):
        while steps and steps[0][0] <= look:
            at, ends, number = steps.pop(0)
            if ends:
                counted.end(numbers[number], at)
            else:
                numbers[number] = counted.begin(at)
        found.append(counted.drift(known, look - 1))
        arrived = [count for at, count in reports if at <= look]
        known = arrived[-1] if arrived else known
    assert all(min(0, off) <= one <= max(0, off) for one in found), "never more than there is"
    assert found[-1] == off, "in the end all of it"


async def test_the_worker_is_told_whose_requests_they_are(http: aiohttp.ClientSession) -> None:
    async with stack(FakeWorker("w1")) as s:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
        for _ in range(2):
            async with http.post(s.url + "/v1/chat/completions", json=body) as answer:
                assert answer.status == 200
        async with http.post(
            s.url + "/v1/embeddings", json={"model": MODEL, "input": "a"}
        ) as answer:
            assert answer.status == 200
        first, second = s.workers[0].requests
        assert first.gateway == second.gateway != ""
        assert s.workers[0].bodies[0][1]["gateway"] == first.gateway


async def test_the_gauge_shows_leaked_and_lost_requests(
    http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.app.LOOK_EVERY_S", 0.02)
    monkeypatch.setattr("gateway.drift.LOOK_EVERY_S", 0.02)
    monkeypatch.setattr("gateway.drift.WINDOW_S", 0.1)
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stream": True}

    async def gauge() -> float | None:
        async with http.get(s.url + "/metrics") as answer:
            text = await answer.text()
        found = [one for one in text.splitlines() if one.startswith(GAUGE)]
        return float(found[0].rpartition(" ")[2]) if found else None

    async def until_gauge(expected: float) -> None:
        async with asyncio.timeout(5):
            while await gauge() != expected:  # noqa: ASYNC110 - asked over HTTP
                await asyncio.sleep(0.02)

    async with stack(FakeWorker("w1", hang_after=2)) as s:
        [known] = s.controller.workers
        asked = await http.post(s.url + "/v1/chat/completions", json=body)
        ours = s.workers[0].requests[0].gateway

        def report(count: int, seq: int) -> None:
            s.controller.set(known.model_copy(update={"serving": {ours: count}, "seq": seq}))

        report(3, 1)
        await until_gauge(2)
        report(0, 2)
        await until_gauge(-1)
        report(1, 3)
        await until_gauge(0)
        asked.close()
        await until_gauge(1)
        report(0, 4)
        await until_gauge(0)
