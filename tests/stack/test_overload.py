"""More than the workers can do, over real processes: who waits, who is refused, and how soon."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import aiohttp
import httpx
import pytest

from tests.stack.processes import Stack, Tier, running

SMALL, FAIR = "small-queue", "fair"
KEYS = ("key-of-a-flood", "key-of-another")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Two workers with short queues, and one that runs two at a time."""
    with running(tmp_path_factory.mktemp("overload")) as stack:
        small = ("--engine", "sim", "--model-names", SMALL, "--sim-max-running", "1")
        for _ in range(2):
            stack.add_worker(*small, "--max-queue-requests", "1", "--sim-itl-ms", "20")
        stack.add_worker(
            *("--engine", "sim", "--model-names", FAIR, "--sim-max-running", "2"),
            *("--sim-itl-ms", "5", "--sim-tokens", "4"),
        )
        stack.wait_serving()
        yield stack


@pytest.fixture(scope="module")
def keyed(stack: Stack) -> Tier:
    """A gateway that tells two keys apart."""
    gateway = stack.add_gateway("--api-keys", ",".join(KEYS))
    gateway.wait_ready()
    return gateway


@pytest.fixture
async def api(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=stack.gateway.url, timeout=60, limits=limits, trust_env=False
    ) as client:
        yield client


def body(model: str, **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], **fields}


async def begun(stack: Stack, sequences: int, *workers: Tier) -> None:
    """Until so many sequences run or wait on these workers."""

    def now() -> float:
        names = ("vllm:num_requests_running", "vllm:num_requests_waiting")
        return sum(worker.metric(name) for worker in workers for name in names)

    await reaches(now, sequences)


async def reaches(now: Callable[[], float], least: float) -> None:
    """Until it is so much."""
    deadline = time.monotonic() + 20
    while await asyncio.to_thread(now) < least:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_a_full_cluster_says_so_at_once_and_when_to_come_again(
    stack: Stack, api: httpx.AsyncClient
) -> None:
    long = body(SMALL, max_tokens=1500, ignore_eos=True)
    asked = [asyncio.create_task(api.post("/v1/chat/completions", json=long)) for _ in range(4)]
    await begun(stack, 4, *stack.workers[:2])
    took = []
    for _ in range(20):
        at = time.perf_counter()
        answer = await api.post("/v1/chat/completions", json=long)
        took.append(time.perf_counter() - at)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert "x-should-retry" not in answer.headers
    assert sorted(took)[10] < 0.05
    for one in asked:
        one.cancel()
    await asyncio.gather(*asked, return_exceptions=True)
    async with asyncio.timeout(10):
        while answer.status_code == 503:
            await asyncio.sleep(0.02)
            answer = await api.post("/v1/chat/completions", json=body(SMALL, max_tokens=1))
    assert answer.status_code == 200


async def test_a_flood_of_one_key_does_not_keep_another_waiting(stack: Stack, keyed: Tier) -> None:
    ended: list[str] = []
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(keyed.url, connector=connector) as http:

        async def ask(key: str, seed: int) -> None:
            headers = {"Authorization": f"Bearer {key}"}
            wanted = body(FAIR, seed=seed)
            async with http.post("/v1/chat/completions", json=wanted, headers=headers) as answer:
                assert answer.status == 200
            ended.append(key)

        flood = [asyncio.create_task(ask(KEYS[0], number)) for number in range(200)]
        await begun(stack, 120, stack.workers[2])
        before = len(ended)
        await asyncio.gather(*(ask(KEYS[1], number) for number in range(4)))
        passed = len(ended) - before - 4
        await asyncio.gather(*flood)
    assert len(ended) == 204
    assert passed < 40, "of the 120 that were there before the other key's four"


async def test_what_is_late_in_the_queue_is_a_504_and_is_never_computed(
    stack: Stack, api: httpx.AsyncClient
) -> None:
    def answered() -> float:
        return worker.metric("vllm:time_to_first_token_seconds_count")

    worker = stack.workers[2]
    before = answered()
    long = body(FAIR, max_tokens=1500, ignore_eos=True)
    running = [asyncio.create_task(api.post("/v1/chat/completions", json=long)) for _ in range(2)]
    await reaches(answered, before + 2)
    at = time.perf_counter()
    late = await api.post(
        "/v1/chat/completions", json=body(FAIR), headers={"x-request-timeout-ms": "150"}
    )
    assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert 0.15 <= time.perf_counter() - at < 1.0
    for one in running:
        one.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    after = await api.post("/v1/chat/completions", json=body(FAIR, max_tokens=2))
    assert after.status_code == 200
    assert answered() == before + 2 + 1, "of the two that ran and of the last one"
    assert worker.metric("vllm:num_requests_waiting") == 0
