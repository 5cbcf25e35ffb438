"""Images, sound and files are refused by name, and no worker hears of them; text is answered."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from tests.gateway.fakes import MODEL, FakeWorker, stack

CHAT = "/v1/chat/completions"
TEXT_PART = {"type": "text", "text": "What is this?"}
PNG = "data:image/png;base64,iVBORw0KGgo="

PARTS: list[dict[str, Any]] = [
    {"type": "image_url", "image_url": {"url": "https://example.com/a.png", "detail": "low"}},
    {"type": "image_url", "image_url": {"url": PNG}},
    {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
    {"type": "file", "file": {"file_id": "file-1"}},
    {"type": "file", "file": {"filename": "a.pdf", "file_data": "JVBERi0="}},
    {"type": "video_url", "video_url": {"url": "https://example.com/a.mp4"}},
    {"type": "input_image", "image_url": PNG},
]
FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "wav"}}, "modalities"),
    ({"modalities": ["audio"]}, "modalities"),
    ({"modalities": ["image"]}, "modalities"),
    ({"audio": {"voice": "alloy", "format": "wav"}}, "audio"),
]


def user(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


async def asked(
    http: aiohttp.ClientSession, fields: dict[str, Any], path: str = CHAT
) -> tuple[int, dict[str, Any], int]:
    """(status, body, requests that reached the worker)."""
    body = {"model": MODEL, **user("Hello"), **fields}
    async with (
        stack(FakeWorker()) as s,
        http.post(s.url + path, json=body) as answer,
    ):
        return answer.status, await answer.json(), len(s.workers[0].requests)


@pytest.mark.parametrize("path", [CHAT, "/api/v1/chat/completions"])
@pytest.mark.parametrize("part", PARTS, ids=lambda part: str(part["type"]))
async def test_a_part_that_is_no_text_is_refused_by_name(
    http: aiohttp.ClientSession, part: dict[str, Any], path: str
) -> None:
    status, body, reached = await asked(http, user([TEXT_PART, part]), path)
    error = body["error"]
    assert (status, reached) == (400, 0)
    assert (error["param"], error["code"]) == ("messages[0].content[1].type", "invalid_value")
    assert part["type"] in error["message"]


@pytest.mark.parametrize(("fields", "param"), FIELDS)
async def test_an_answer_that_is_no_text_is_refused_by_name(
    http: aiohttp.ClientSession, fields: dict[str, Any], param: str
) -> None:
    status, body, reached = await asked(http, fields)
    assert (status, reached) == (400, 0)
    assert (body["error"]["param"], body["error"]["code"]) == (param, "unsupported_parameter")


async def test_a_spoken_turn_is_refused_by_name(http: aiohttp.ClientSession) -> None:
    spoken = {"role": "assistant", "content": None, "audio": {"id": "audio-1"}}
    status, body, reached = await asked(http, {"messages": [spoken]})
    assert (status, reached) == (400, 0)
    assert body["error"]["param"] == "messages[0].audio"


@pytest.mark.parametrize(
    "fields",
    [
        user([TEXT_PART, TEXT_PART]),
        {"modalities": ["text"]},
        {"modalities": None, "audio": None},
        user(f"An address in a text is a text: {PNG}"),
    ],
)
async def test_text_is_answered(http: aiohttp.ClientSession, fields: dict[str, Any]) -> None:
    status, _, reached = await asked(http, fields)
    assert (status, reached) == (200, 1)


@pytest.mark.parametrize("given", [{"image": PNG}, [{"type": "image_url", "image_url": PNG}]])
async def test_an_embedding_of_an_image_is_refused_by_name(
    http: aiohttp.ClientSession, given: Any
) -> None:
    async with (
        stack(FakeWorker()) as s,
        http.post(s.url + "/v1/embeddings", json={"model": MODEL, "input": given}) as answer,
    ):
        error = (await answer.json())["error"]
        assert (answer.status, error["param"], error["code"]) == (400, "input", "invalid_type")
        assert s.workers[0].bodies == []


async def test_routes_of_other_modalities_do_not_exist(http: aiohttp.ClientSession) -> None:
    async with stack(FakeWorker()) as s:
        for path in ("/v1/images/generations", "/v1/audio/speech", "/v1/audio/transcriptions"):
            async with http.post(s.url + path, json={"model": MODEL}) as answer:
                assert answer.status == 404
                assert (await answer.json())["error"]["code"] == "unknown_url"
