"""/v1/messages over sockets: keys, errors in Anthropic's form, streams and counts."""

from __future__ import annotations

from typing import Any

import aiohttp
import anthropic
import pytest
from anthropic.types.shared import ErrorResponse

from protocol.errors import TriremeError
from tests.gateway.fakes import MODEL, FakeWorker, Stack, stack

TEXT = "Hello there, how are you?"
BODY: dict[str, Any] = {
    "model": MODEL,
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "hi"}],
}
KEY = {"x-api-key": "secret"}


def client_of(s: Stack) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=s.url, api_key="secret", max_retries=0)


async def test_a_message_whole_and_streamed() -> None:
    async with stack(FakeWorker()) as s, client_of(s) as client:
        whole = await client.messages.create(**BODY)
        assert (whole.content[0].text, whole.stop_reason) == (TEXT, "end_turn")
        assert (whole.usage.input_tokens, whole.usage.cache_read_input_tokens) == (4, 3)
        async with client.messages.stream(**BODY) as stream:
            assert [text async for text in stream.text_stream] == [
                "Hello",
                " there",
                ", how",
                " are",
                " you",
                "?",
            ]
            final = await stream.get_final_message()
        assert final.usage.to_dict() == whole.usage.to_dict()


@pytest.mark.parametrize(
    "headers", [KEY, {"Authorization": "Bearer secret"}, {**KEY, "Authorization": "Basic x"}]
)
async def test_both_ways_to_send_a_key_are_taken(
    http: aiohttp.ClientSession, headers: dict[str, str]
) -> None:
    async with stack(FakeWorker(), api_keys=("secret",)) as s:
        for path in ("/v1/messages", "/v1/chat/completions"):
            async with http.post(s.url + path, json=BODY, headers=headers) as answer:
                assert answer.status == 200, await answer.text()


async def error_of(answer: aiohttp.ClientResponse) -> tuple[int, str]:
    body = await answer.json()
    shown = ErrorResponse.model_validate(body)
    assert shown.request_id == answer.headers["request-id"] == answer.headers["x-request-id"]
    return answer.status, body["error"]["type"]


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "status", "kind"),
    [
        ("POST", "/v1/messages", {}, BODY, 401, "authentication_error"),
        ("POST", "/v1/messages", {"x-api-key": "no"}, BODY, 401, "authentication_error"),
        ("POST", "/v1/messages", KEY, {**BODY, "model": "x"}, 404, "not_found_error"),
        ("POST", "/v1/messages", KEY, {**BODY, "max_tokens": "x"}, 400, "invalid_request_error"),
        ("POST", "/v1/messages", KEY, {**BODY, "max_tokens": 9999}, 400, "invalid_request_error"),
        ("POST", "/v1/messages/count_tokens", KEY, BODY, 400, "invalid_request_error"),
        ("POST", "/v1/messages/batches", KEY, {}, 404, "not_found_error"),
        ("GET", "/v1/messages", KEY, None, 405, "invalid_request_error"),
        ("POST", "/v1/messages", {**KEY, "Host": "a b"}, BODY, 400, "invalid_request_error"),
    ],
)
async def test_errors_have_anthropics_form(
    http: aiohttp.ClientSession,
    method: str,
    path: str,
    headers: dict[str, str],
    body: Any,
    status: int,
    kind: str,
) -> None:
    async with (
        stack(FakeWorker(), api_keys=("secret",)) as s,
        http.request(method, s.url + path, json=body, headers=headers) as answer,
    ):
        assert await error_of(answer) == (status, kind)


async def test_a_body_that_is_too_large_is_told_so(http: aiohttp.ClientSession) -> None:
    body = {**BODY, "system": "x" * 5000}
    async with (
        stack(FakeWorker(), max_body_bytes=4096) as s,
        http.post(f"{s.url}/v1/messages", json=body) as answer,
    ):
        assert answer.status == 413
        assert (await answer.json())["error"]["type"] == "request_too_large"


@pytest.mark.parametrize(
    ("refusal", "status", "kind"),
    [
        (TriremeError("overloaded", "Full.", retry_after_s=2), 503, "overloaded_error"),
        (TriremeError("deadline_exceeded", "Late."), 504, "timeout_error"),
        (TriremeError("bad_logits", "Broken."), 500, "api_error"),
    ],
)
async def test_a_workers_refusal_decides_the_status(
    http: aiohttp.ClientSession, refusal: TriremeError, status: int, kind: str
) -> None:
    async with stack(FakeWorker(refuse=refusal)) as s:
        for stream in (False, True):
            asked = {**BODY, "stream": stream}
            async with http.post(f"{s.url}/v1/messages", json=asked) as answer:
                assert await error_of(answer) == (status, kind)
                assert answer.headers.get("Retry-After") == ("2" if status == 503 else None)


async def test_a_worker_lost_in_between_ends_the_stream_with_an_error() -> None:
    async with stack(FakeWorker(die_after=3)) as s, client_of(s) as client:
        with pytest.raises(anthropic.APIStatusError) as caught:
            async with client.messages.stream(**BODY) as stream:
                await stream.until_done()
        assert caught.value.type == "api_error"


async def test_tokens_are_counted_by_a_worker(http: aiohttp.ClientSession) -> None:
    worker = FakeWorker()
    fields = {name: BODY[name] for name in ("model", "messages")}
    async with stack(worker) as s, client_of(s) as client:
        counted = await client.messages.count_tokens(**fields, system="Be short.")
    assert counted.input_tokens == 3
    [(_, body)] = worker.bodies
    assert body["messages"][0] == {"role": "system", "content": "Be short."}
