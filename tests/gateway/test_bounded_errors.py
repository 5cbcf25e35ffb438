"""However large what a client sends, an error repeats at most a little of it."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from tests.gateway.fakes import MODEL, FakeWorker, stack

BIG = "A" * 20_000
HELLO = [{"role": "user", "content": "hi"}]
CHAT: dict[str, Any] = {"model": MODEL, "messages": HELLO}
SCHEMA = {"type": "json_schema", "json_schema": {"name": BIG, "schema": {BIG: BIG}}}
BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {**CHAT, BIG: 1}),
    ("/v1/chat/completions", {**CHAT, "stream": True, "stream_options": {BIG: 1}}),
    ("/v1/chat/completions", {**CHAT, "logit_bias": {BIG: 1}}),
    ("/v1/chat/completions", {**CHAT, "model": BIG}),
    ("/v1/chat/completions", {**CHAT, "messages": [{"role": BIG, "content": ""}]}),
    ("/v1/chat/completions", {**CHAT, "messages": [{"role": "user", "content": [{BIG: 1}]}]}),
    ("/v1/chat/completions", {**CHAT, "response_format": SCHEMA}),
    ("/v1/chat/completions", {**CHAT, "chat_template_kwargs": {BIG: []}}),
    ("/v1/chat/completions", {**CHAT, "tools": [{"type": "function", "function": {"name": BIG}}]}),
    ("/v1/chat/completions", {**CHAT, "tool_choice": BIG}),
    ("/v1/responses", {"model": MODEL, "input": [{"type": BIG}]}),
    ("/v1/responses", {"model": MODEL, "input": "x", "previous_response_id": BIG}),
    ("/v1/messages", {**CHAT, "max_tokens": 1, BIG: 1}),
    ("/v1/messages", {**CHAT, "max_tokens": 1, "tools": [{"name": BIG, "input_schema": {}}]}),
    ("/v1/embeddings", {"model": MODEL, "input": [[BIG]]}),
    ("/tokenize", {"model": MODEL, "prompt": 5, BIG: 1}),
    ("/api/v1/token_check", {"prompts": [{"model": BIG, "prompt": "", "max_tokens": 0}]}),
    (f"/{BIG[:8000]}", {}),
    (f"/v1/engines/{BIG[:8000]}/embeddings", {"input": "x"}),
]


@pytest.mark.parametrize("number", range(len(BODIES)))
async def test_an_error_is_small(http: aiohttp.ClientSession, number: int) -> None:
    path, body = BODIES[number]
    async with (
        stack(FakeWorker()) as s,
        http.post(s.url + path, json=body, headers={"x-request-id": BIG[:8000]}) as answer,
    ):
        text = await answer.text()
        assert 400 <= answer.status < 500
        assert len(text) < 1500
        assert BIG[:101] not in text
        assert all(len(value) <= 128 for value in answer.headers.values())
