"""Whose requests a worker has in service, as its record tells it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from protocol.fleet import MAX_COUNTED_GATEWAYS, WorkerRecord
from tests.worker.conftest import StartWorker, Worker


async def serving(worker: Worker) -> dict[str, int] | None:
    async with worker.http.get(worker.url + "/native/describe") as answer:
        return WorkerRecord.model_validate_json(await answer.read()).serving


async def test_requests_count_for_their_gateway_until_they_end(start_worker: StartWorker) -> None:
    worker = await start_worker(sim_itl_ms=20.0, sim_tokens=1000)
    body: dict[str, Any] = {"request_id": "r", "model": "sim", "prompt": "x"}
    url = worker.url + "/native/generate"
    one = await worker.http.post(url, json={**body, "gateway": "a"})
    two = await worker.http.post(url, json={**body, "gateway": "a"})
    other = await worker.http.post(url, json={**body, "gateway": "b"})
    nobody = await worker.http.post(url, json=body)
    assert await serving(worker) == {"a": 2, "b": 1}
    one.close()
    other.close()
    await until_serving(worker, {"a": 1})
    two.close()
    nobody.close()
    await until_serving(worker, {})


async def until_serving(worker: Worker, expected: dict[str, int]) -> None:
    async with asyncio.timeout(3):
        while await serving(worker) != expected:  # noqa: ASYNC110 - asked over HTTP
            await asyncio.sleep(0.01)


async def test_a_request_that_failed_is_not_counted_any_more(worker: Worker) -> None:
    body = {"request_id": "r", "model": "sim", "prompt": "x" * 100_000, "gateway": "a"}
    status, _ = await worker.post("/native/generate", body)
    assert status == 400
    assert await serving(worker) == {}


async def test_with_too_many_gateways_nothing_is_told(worker: Worker) -> None:
    with contextlib.ExitStack() as under_way:
        for number in range(MAX_COUNTED_GATEWAYS + 1):
            under_way.enter_context(worker.runtime.request(f"g{number}"))
        assert await serving(worker) is None
    assert await serving(worker) == {}
