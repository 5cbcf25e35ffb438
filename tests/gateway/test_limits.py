"""Limits of callers: what is refused, for how long, and what every answer tells of them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from gateway.buckets import Table
from gateway.keys import ApiKey, Limits, plain_key
from gateway.limits import Limiter, duration
from protocol.errors import TriremeError
from tests.gateway.fakes import MODEL, WORDS, FakeWorker, Stack, record, stack, until

BODY: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
KEYS = """
[[keys]]
name = "few"
key = "key-few"
limit_requests = 3

[[keys]]
name = "tokens"
key = "key-tokens"
limit_tokens = 600

[[keys]]
name = "free"
key = "key-free"
limit_requests = 0

[[keys]]
name = "elsewhere"
key = "key-elsewhere"
models = ["another"]
"""


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def key(requests: int = 0, tokens: int = 0, name: str = "k") -> ApiKey:
    return plain_key(name, Limits(requests, tokens))


def left(limiter: Limiter, caller: ApiKey) -> dict[str, str]:
    headers = limiter.headers({"state": {"caller": caller}})
    return {name.decode().removeprefix("x-ratelimit-"): text.decode() for name, text in headers}


def refusal(limiter: Limiter, caller: ApiKey, tokens: int) -> TriremeError:
    with pytest.raises(TriremeError) as caught:
        limiter.take(caller, tokens)
    return caught.value


def test_requests_are_refused_for_as_long_as_they_are_told() -> None:
    clock, caller = Clock(), key(requests=4)
    limiter = Limiter(Table(), clock=clock)
    for _ in range(4):
        limiter.take(caller, 10**6)
    error = refusal(limiter, caller, 0)
    assert (error.code, error.retry_after_s) == ("rate_limit_exceeded", pytest.approx(15.0))
    assert left(limiter, caller) == {
        "limit-requests": "4", "remaining-requests": "0", "reset-requests": "1m0s",
    }  # fmt: skip
    clock.now += 14.9
    refusal(limiter, caller, 0)
    clock.now += 0.2
    limiter.take(caller, 0)


def test_a_refused_request_takes_nothing() -> None:
    refused: list[str] = []
    limiter, caller = Limiter(Table(), refused.append, clock=Clock()), key(requests=5, tokens=100)
    limiter.take(caller, 90)
    assert refusal(limiter, caller, 20).retry_after_s == pytest.approx(6.0)
    assert refusal(limiter, caller, 101).code == "insufficient_quota"
    assert left(limiter, caller)["remaining-requests"] == "4"
    assert left(limiter, caller)["remaining-tokens"] == "10"
    limiter.take(caller, 10)
    assert refused == ["tokens", "size"]


def test_the_true_usage_takes_the_place_of_what_was_reserved() -> None:
    limiter, caller = Limiter(Table(), clock=Clock()), key(tokens=100)
    limiter.take(caller, 80)
    limiter.correct(caller, 80, 30)
    assert left(limiter, caller)["remaining-tokens"] == "70"
    limiter.take(caller, 10)
    limiter.correct(caller, 10, 170)
    assert left(limiter, caller)["remaining-tokens"] == "0"
    assert refusal(limiter, caller, 100).retry_after_s == pytest.approx(120.0)


def test_callers_do_not_share_and_those_without_limits_have_none() -> None:
    limiter = Limiter(Table(), clock=Clock())
    limiter.take(key(requests=1), 0)
    limiter.take(key(requests=1, name="other"), 0)
    for _ in range(10):
        limiter.take(key(name="free"), 10**9)
    assert left(limiter, key(name="free")) == {}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (-3, "0s"), (0.0123, "13ms"), (1, "1s"), (1.5, "1.5s"), (360, "6m0s"),
     (3661.25, "1h1m1.25s"), (3600, "1h0m0s")],
)  # fmt: skip
def test_durations_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# ---- over the wire ------------------------------------------------------------------------------


async def post(
    http: aiohttp.ClientSession, s: Stack, path: str, body: dict[str, Any], key: str = ""
) -> tuple[int, dict[str, str], Any]:
    """(status, headers in lower case, answer)."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with http.post(s.url + path, json=body, headers=headers) as answer:
        raw = await answer.read()
        found = {name.lower(): value for name, value in answer.headers.items()}
        streamed = answer.content_type == "text/event-stream"
        return answer.status, found, raw if streamed else json.loads(raw)


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    file = tmp_path / "keys.toml"
    file.write_text(KEYS)
    return file


async def test_each_key_has_its_own_limit_and_a_429_says_when_to_come_again(
    http: aiohttp.ClientSession, keys_file: Path
) -> None:
    async with stack(FakeWorker(), api_keys_file=keys_file, limit_requests=2) as s:
        for number in range(3):
            stream = {"stream": number == 1}
            status, headers, _ = await post(
                http, s, "/v1/chat/completions", BODY | stream, "key-few"
            )
            assert status == 200
            assert headers["x-ratelimit-limit-requests"] == "3"
            assert headers["x-ratelimit-remaining-requests"] == str(2 - number)
            assert "x-ratelimit-limit-tokens" not in headers
        status, headers, body = await post(http, s, "/v1/chat/completions", BODY, "key-few")
        assert (status, headers["x-ratelimit-remaining-requests"]) == (429, "0")
        assert 1 <= int(headers["retry-after"]) <= 20
        assert "x-should-retry" not in headers
        assert body["error_code"] == 42901
        assert body["error"]["code"] == "rate_limit_exceeded"
        assert body["error"]["type"] == "requests"
        assert body["error"]["message"].startswith("The limit of 3 requests a minute is reached")
        for _ in range(8):
            status, headers, _ = await post(http, s, "/v1/chat/completions", BODY, "key-free")
            assert status == 200
            assert not [name for name in headers if name.startswith("x-ratelimit")]
        assert len(s.workers[0].requests) == 11


async def test_tokens_are_reserved_by_max_tokens_and_corrected_by_the_true_usage(
    http: aiohttp.ClientSession, keys_file: Path
) -> None:
    async with stack(FakeWorker(), api_keys_file=keys_file) as s:
        ask = {"max_tokens": 500, "n": 1}
        used = 7 + len(WORDS)
        for _ in range(5):
            status, _, _ = await post(http, s, "/v1/chat/completions", BODY | ask, "key-tokens")
            assert status == 200
        status, headers, _ = await post(
            http, s, "/v1/models/nothing", {}, "key-tokens"
        )  # no route for it: told, and nothing taken
        assert status == 405
        assert 600 - used * 5 <= int(headers["x-ratelimit-remaining-tokens"]) <= 600
        status, headers, body = await post(
            http, s, "/v1/chat/completions", BODY | {"max_tokens": 300, "n": 2}, "key-tokens"
        )
        assert (status, headers["x-should-retry"]) == (429, "false")
        assert "retry-after" not in headers
        assert (body["error"]["code"], body["error_code"]) == ("insufficient_quota", 42902)
        assert "600" in body["error"]["message"]


async def test_a_running_request_holds_what_it_may_need_and_gives_it_back_when_it_is_left(
    http: aiohttp.ClientSession,
) -> None:
    async with stack(FakeWorker(pause_s=0.2), limit_tokens=1000) as s:
        body = BODY | {"max_tokens": 700}
        running = asyncio.create_task(post(http, s, "/v1/chat/completions", body))
        await until(lambda: s.workers[0].running)
        status, headers, told = await post(http, s, "/v1/chat/completions", body)
        assert status == 429
        assert (told["error"]["type"], told["error"]["code"]) == ("tokens", "rate_limit_exceeded")
        assert int(headers["retry-after"]) > 20
        running.cancel()
        await until(lambda: not s.workers[0].running)
        status, headers, _ = await post(http, s, "/v1/chat/completions", body)
        assert status == 200
        assert s.app.state.gateway.dispatcher.in_flight.count() == 0


ROUTES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", BODY),
    ("/api/v1/chat/completions", BODY),
    ("/v1/completions", {"model": MODEL, "prompt": "hi"}),
    ("/v1/responses", {"model": MODEL, "input": "hi"}),
    ("/v1/messages", {**BODY, "max_tokens": 5}),
    ("/v1/messages/count_tokens", BODY),
    ("/v1/embeddings", {"model": MODEL, "input": "hi"}),
    (f"/v1/engines/{MODEL}/embeddings", {"input": "hi"}),
    ("/v1/score", {"model": MODEL, "text_1": "a", "text_2": "b"}),
    ("/v1/rerank", {"model": MODEL, "query": "a", "documents": ["b"]}),
    ("/tokenize", {"model": MODEL, "prompt": "hi"}),
    ("/detokenize", {"model": MODEL, "tokens": [1]}),
    ("/api/v1/token_check", {"prompts": [{"model": MODEL, "prompt": "a", "max_tokens": 1}]}),
]


@pytest.mark.parametrize(("path", "body"), ROUTES, ids=[path for path, _ in ROUTES])
async def test_every_route_that_costs_something_is_limited(
    http: aiohttp.ClientSession, path: str, body: dict[str, Any]
) -> None:
    async with stack(FakeWorker(), limit_requests=1) as s:
        first, headers, _ = await post(http, s, path, body)
        assert first != 429
        assert headers["x-ratelimit-remaining-requests"] == "0"
        status, headers, answer = await post(http, s, path, body)
        assert status == 429
        assert int(headers["retry-after"]) >= 59
        if path.startswith("/v1/messages"):
            assert answer["error"]["type"] == "rate_limit_error"
        async with http.get(s.url + "/v1/models") as listed:
            assert listed.status == 200


async def test_a_key_sees_and_uses_its_own_models_alone(
    http: aiohttp.ClientSession, keys_file: Path
) -> None:
    async with stack(FakeWorker(), FakeWorker("w2"), api_keys_file=keys_file) as s:
        other = record("w2", s.workers[1].address).model_copy(
            update={"models": (record().models[0].model_copy(update={"name": "another"}),)}
        )
        s.controller.set(record("w1", s.workers[0].address), other)
        await until(lambda: len(s.app.state.gateway.view.snapshot.models) == 2)
        headers = {"Authorization": "Bearer key-elsewhere"}
        for path in ("/v1/models", "/v1/capabilities"):
            async with http.get(s.url + path, headers=headers) as answer:
                assert [one["id"] for one in (await answer.json())["data"]] == ["another"]
        async with http.get(s.url + f"/v1/models/{MODEL}", headers=headers) as answer:
            assert answer.status == 404
        for path, body in ROUTES:
            status, _, answer = await post(http, s, path, body, "key-elsewhere")
            assert status == 404, path
            if not path.startswith("/v1/messages"):
                assert answer["error"]["code"] == "model_not_found"
        status, _, _ = await post(
            http, s, "/v1/chat/completions", BODY | {"model": "another"}, "key-elsewhere"
        )
        assert status == 200


async def test_openais_client_waits_as_it_is_told_and_gives_up_where_that_is_of_no_use() -> None:
    async with (
        stack(FakeWorker(), limit_tokens=2000) as s,
        openai.AsyncOpenAI(api_key="x", base_url=f"{s.url}/v1", max_retries=3) as api,
    ):
        with pytest.raises(openai.RateLimitError):
            await api.chat.completions.create(**BODY, max_tokens=2048)
        counted = s.app.state.gateway.metrics.registry.get_sample_value
        assert counted("trireme_gateway_rate_limited_total", {"limit": "size"}) == 1
