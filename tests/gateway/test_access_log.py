"""What the gateway's log says of each request, and of answers that change their worker."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from protocol.errors import TriremeError
from tests.gateway.fakes import MODEL, FakeWorker, Stack, stack, until

PATH = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
KEYS = '[[keys]]\nname = "team-red"\nkey = "secret-1"\nlimit_requests = 1\n'


@pytest.fixture(autouse=True)
def _all_of_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gateway")


async def post(http: aiohttp.ClientSession, s: Stack, key: str = "", **fields: Any) -> int:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with http.post(s.url + PATH, json=BODY | fields, headers=headers) as answer:
        await answer.read()
        return answer.status


async def lines(caplog: pytest.LogCaptureFixture, number: int) -> list[str]:
    """The access lines so far, without their times."""

    def found() -> list[str]:
        return [one for one in caplog.messages if one.startswith(f"POST {PATH} ")]

    await until(lambda: len(found()) >= number)
    return [re.sub(r" \d+ ms$", "", one).removeprefix(f"POST {PATH} ") for one in found()]


async def test_a_line_names_the_error_and_the_key_never_the_key_itself(
    http: aiohttp.ClientSession, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(KEYS)
    async with stack(FakeWorker(), api_keys_file=file) as s:
        statuses = [await post(http, s, key) for key in ("secret-1", "secret-1", "wrong", "")]
        assert statuses == [200, 429, 401, 401]
        assert await lines(caplog, 4) == [
            "200 key=team-red",
            "429 rate_limit_exceeded key=team-red",
            "401 invalid_api_key",
            "401 missing_api_key",
        ]
        async with http.get(s.url + "/metrics") as shown:
            assert "\ntrireme_gateway_keys_file_ok 1.0" in await shown.text()
    assert "secret-1" not in caplog.text


async def test_without_keys_no_key_is_named(
    http: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    async with stack(FakeWorker()) as s:
        await post(http, s)
        await post(http, s, model="evil")
        await post(http, s, max_tokens="many")
        assert await lines(caplog, 3) == ["200", "404 model_not_found", "400 invalid_type"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_broken_answer_says_its_code_whatever_its_status(
    http: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    async with stack(FakeWorker("w1", die_after=3)) as s:
        status = await post(http, s, stream=stream)
        assert await lines(caplog, 1) == [f"{status} worker_lost"]
        assert status == (200 if stream else 502)
        async with http.get(s.url + "/metrics") as shown:
            text = await shown.text()
        told = f'model="{MODEL}",route="{PATH}",status="{status}"'
        assert f'requests_total{{code="worker_lost",{told}}} 1.0' in text
        assert "retries_total{" not in text, "no other worker was asked"
        assert "resumed_total{" not in text


async def test_a_rescued_answer_is_told_once_with_both_workers(
    http: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    async with stack(FakeWorker("w1", die_after=3), FakeWorker("w2")) as s:
        while not s.workers[0].requests:
            assert await post(http, s, stream=True) == 200
    [told] = [one for one in caplog.records if "went on" in one.getMessage()]
    assert told.levelno == logging.WARNING
    assert told.getMessage() == (
        "worker w1 lost (worker_lost); the answer went on at w2 after 2 tokens (attempt 2)"
    )


async def test_a_worker_that_refuses_on_the_way_is_not_the_one_that_was_lost(
    http: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    gone = TriremeError("wrong_instance", "Another worker process serves this address now.")
    workers = [FakeWorker("w1", die_after=3), FakeWorker("w2", refuse=gone), FakeWorker("w3")]
    async with stack(*workers) as s:
        while "w1 lost" not in caplog.text:
            assert await post(http, s, stream=True) == 200
            assert len(s.workers[2].requests) < 50
    assert re.search(r"worker w1 lost \(worker_lost\); the answer went on at w3", caplog.text)
    assert "w2 lost" not in caplog.text


async def test_an_answer_that_is_handed_over_is_no_warning(
    http: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    drains = FakeWorker("w1", fail_after=(3, TriremeError("draining", "The worker drains.")))
    async with stack(drains, FakeWorker("w2")) as s:
        while not s.workers[0].requests:
            assert await post(http, s) == 200
    [told] = [one for one in caplog.records if "handed over" in one.getMessage()]
    assert told.levelno == logging.INFO
    assert told.getMessage() == (
        "worker w1 drains; the answer was handed over to w2 after 2 tokens"
    )
    assert "failed a request" not in caplog.text


async def test_a_retry_counts_when_another_worker_is_asked(
    http: aiohttp.ClientSession,
) -> None:
    async with stack(FakeWorker("w1", die_after=0), FakeWorker("w2")) as s:
        while not s.workers[0].requests:
            assert await post(http, s) == 200
        async with http.get(s.url + "/metrics") as shown:
            text = await shown.text()
    assert re.search(r'retries_total\{model="demo",reason="worker_\w+"\} 1\.0', text)
