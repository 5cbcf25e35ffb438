"""Whatever stands in place of a valid body's parts, it is a request or a 400 that says why."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from copy import deepcopy
from random import Random
from typing import Any

import pytest
from pydantic import BaseModel

from gateway.body import parse
from gateway.messages import translate as messages
from gateway.responses import translate as responses
from gateway.responses.render import ResponseHead, ResponseRenderer
from protocol.anthropic import MessagesRequest
from protocol.create_response import CreateResponse
from protocol.errors import TriremeError
from protocol.generation import Started
from protocol.openai import ChatCompletionRequest
from protocol.texts import ScoringRequest

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
RESPONSE: dict[str, Any] = {
    "model": "m",
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "seen"},
        {"type": "item_reference", "id": "msg_1"},
    ],
    "instructions": "Be short.",
    "tools": [{"type": "function", "name": "look", "parameters": SCHEMA, "strict": True}],
    "tool_choice": {
        "type": "allowed_tools",
        "mode": "auto",
        "tools": [{"type": "function", "name": "look"}],
    },
    "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}},
    "reasoning": {"effort": "low", "summary": "auto"},
    "include": ["message.output_text.logprobs"],
    "top_logprobs": 2,
    "metadata": {"a": "b"},
    "stream": True,
    "stream_options": {"include_obfuscation": False},
}
MESSAGE: dict[str, Any] = {
    "model": "m",
    "max_tokens": 2000,
    "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
    "messages": [
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": ""},
                {"type": "tool_use", "id": "t", "name": "look", "input": {"a": 1}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t", "content": "seen", "is_error": True},
                {"type": "text", "text": "And?"},
            ],
        },
    ],
    "tools": [{"name": "look", "input_schema": SCHEMA}],
    "tool_choice": {"type": "tool", "name": "look", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "output_config": {"effort": "low"},
    "stop_sequences": ["a"],
}
ODD: list[Any] = [
    None, True, False, 0, -1, 2**70, 1.5, 1e308, "", "x", "function", "message", "\0", "é" * 5,
    [], {}, [None], [[]], [{}], ["a", "b"], {"type": None}, {"type": []}, {"type": "function"},
    {"type": "message"}, {"type": "tool"}, {"role": "user"}, {"id": 5}, {"a": {"b": [1]}},
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    inner: Any = value.items() if isinstance(value, dict) else ()
    for key, item in enumerate(value) if isinstance(value, list) else inner:
        yield from places(item, (*path, key))


def changed(body: dict[str, Any], rng: Random) -> dict[str, Any]:
    """With something odd in place of one part, beside it, or the part left out."""
    body = deepcopy(body)
    *path, last = rng.choice(list(places(body)))
    parent: Any = body
    for key in path:
        parent = parent[key]
    match rng.choice(["replace", "replace", "add", "remove"]):
        case "remove":
            del parent[last]
        case "add" if isinstance(parent, list):
            parent.append(rng.choice(ODD))
        case "add":
            parent["odd"] = rng.choice(ODD)
        case _:
            parent[last] = rng.choice(ODD)
    return body


def respond(body: bytes) -> None:
    asked = parse(body, CreateResponse)
    [message] = CreateResponse(model="m", input="hi").items
    items = responses.resolved(asked.items, lambda _: message)
    responses.generate_request(asked, items, request_id="r", deadline_s=1.0, cache_salt="")
    for item in items:
        responses.listed(item)
    head = ResponseHead("resp_1", 1, asked)
    made = ResponseRenderer(head, now=lambda: 1.0, finished=lambda _: None)
    assert made.chunks(0, Started(1, "w", ""))


def message(body: bytes) -> None:
    asked = parse(body, MessagesRequest)
    messages.generate_request(asked, request_id="r", deadline_s=1.0, cache_salt="")
    messages.tokenize_request(asked)


@pytest.mark.parametrize(("body", "take"), [(RESPONSE, respond), (MESSAGE, message)])
def test_an_odd_body_is_taken_or_refused(body: dict[str, Any], take: Any) -> None:
    rng = Random(1)
    take(json.dumps(body).encode())
    statuses: list[int] = []
    for _ in range(2000):
        odd = changed(changed(body, rng), rng) if rng.random() < 0.3 else changed(body, rng)
        try:
            take(json.dumps(odd).encode())
        except TriremeError as error:
            statuses.append(error.spec.status)
    assert set(statuses) == {400}
    assert 1000 < len(statuses) < 2000


ONES = "[" + ",".join(["1"] * 300_000) + "]"
LISTS: list[tuple[type[BaseModel], str]] = [
    (CreateResponse, '{"model":"m","input":%s}'),
    (CreateResponse, '{"model":"m","input":[{"role":"user","content":%s}]}'),
    (CreateResponse, '{"model":"m","input":"x","include":%s}'),
    (CreateResponse, '{"model":"m","input":"x","tools":%s}'),
    (MessagesRequest, '{"model":"m","max_tokens":3,"messages":%s}'),
    (MessagesRequest, '{"model":"m","max_tokens":3,"messages":[{"role":"user","content":%s}]}'),
    (MessagesRequest, '{"model":"m","max_tokens":3,"messages":[],"system":%s}'),
    (ChatCompletionRequest, '{"model":"m","messages":%s}'),
    (ChatCompletionRequest, '{"model":"m","messages":[{"role":"user","content":%s}]}'),
    (ChatCompletionRequest, '{"model":"m","messages":[{"role":"assistant","tool_calls":%s}]}'),
    (ScoringRequest, '{"model":"m","text_1":"x","text_2":%s}'),
]


@pytest.mark.parametrize(("model", "body"), LISTS)
def test_the_first_of_many_bad_items_is_enough(model: type[BaseModel], body: str) -> None:
    """All errors of a list of 4 MiB would hold the gateway up for 20 seconds."""
    whole = (body % ONES).encode()
    began = time.process_time()
    with pytest.raises(TriremeError):
        parse(whole, model)
    assert time.process_time() - began < 0.5
