"""Every answer and every frame has the shape that OpenAI's own specification gives it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from tests.stack.processes import Stack, running

SCHEMAS = json.loads((Path(__file__).parent / "openai_answers.json").read_text("utf-8"))
MODEL = "trireme-demo"
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "What is Trireme? JSON."}]}
TOOL = {"type": "function", "function": {"name": "f"}}
CALL = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}
LOGPROBS = {"logprobs": True, "top_logprobs": 2}
USAGE = {"stream_options": {"include_usage": True}}
CHATS: list[dict[str, Any]] = [
    {"max_tokens": 4},
    {"max_tokens": 4, "n": 2, "temperature": 1},
    {"max_tokens": 4, **LOGPROBS},
    {"max_tokens": 60, **CALL, **LOGPROBS},
    {"max_tokens": 60, "response_format": {"type": "json_object"}},
]
COMPLETION = {"model": MODEL, "prompt": "Trireme is", "max_tokens": 4}
COMPLETIONS: list[dict[str, Any]] = [
    {},
    {"logprobs": 2, "echo": True},
    {"prompt": ["One", "Two"], "n": 2},
]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with running(tmp_path_factory.mktemp("stack")) as made:
        made.add_worker()
        made.wait_serving()
        with client_of(made) as one:
            yield one


def client_of(stack: Stack) -> httpx.Client:
    return httpx.Client(base_url=stack.gateway.url, timeout=60)


def check(value: Any, name: str) -> None:
    schema = {**SCHEMAS, "$ref": f"#/components/schemas/{name}"}
    jsonschema.Draft202012Validator(schema).validate(value)


def frames(client: httpx.Client, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    with client.stream("POST", path, json={**body, "stream": True}) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if line.startswith("data: "):
                found.append(line.removeprefix("data: "))
    assert found.pop() == "[DONE]"
    return [json.loads(one) for one in found]


@pytest.mark.parametrize("fields", CHATS, ids=str)
def test_chat(client: httpx.Client, fields: dict[str, Any]) -> None:
    answer = client.post("/v1/chat/completions", json={**CHAT, **fields})
    check(answer.json(), "CreateChatCompletionResponse")
    assert [c["index"] for c in answer.json()["choices"]] == list(range(fields.get("n", 1)))


@pytest.mark.parametrize("fields", CHATS, ids=str)
@pytest.mark.parametrize("options", [{}, USAGE], ids=str)
def test_chat_frames(client: httpx.Client, fields: dict[str, Any], options: dict[str, Any]) -> None:
    found = frames(client, "/v1/chat/completions", {**CHAT, **fields, **options})
    for frame in found:
        check(frame, "CreateChatCompletionStreamResponse")
    head = ("id", "object", "created", "model", "system_fingerprint")
    assert len({tuple(frame[name] for name in head) for frame in found}) == 1
    if options:
        *found, last = found
        assert last["choices"] == []
        assert all(frame["usage"] is None for frame in found)
    for index in range(fields.get("n", 1)):
        own = [f["choices"][0] for f in found if f["choices"][0]["index"] == index]
        assert own[0]["delta"]["role"] == "assistant"
        assert [c for c in own if c["finish_reason"]] == own[-1:]


@pytest.mark.parametrize("fields", COMPLETIONS, ids=str)
def test_completions(client: httpx.Client, fields: dict[str, Any]) -> None:
    answer = client.post("/v1/completions", json={**COMPLETION, **fields})
    check(scored(answer.json()), "CreateCompletionResponse")
    for frame in frames(client, "/v1/completions", {**COMPLETION, **fields}):
        # the specification has no frames without a finish, OpenAI's servers send null
        ended = [{"finish_reason": "stop", **_given(one)} for one in scored(frame)["choices"]]
        check({**frame, "choices": ended}, "CreateCompletionResponse")


def _given(choice: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in choice.items() if k != "finish_reason" or v is not None}


def scored(answer: dict[str, Any]) -> dict[str, Any]:
    """Without the nulls of a prompt's first token: OpenAI's servers send them too."""
    for choice in answer["choices"]:
        logprobs = choice["logprobs"]
        if logprobs and logprobs["token_logprobs"] and logprobs["token_logprobs"][0] is None:
            choice["logprobs"] = {name: values[1:] for name, values in logprobs.items()}
    return answer


def test_the_rest(client: httpx.Client) -> None:
    embeddings = client.post("/v1/embeddings", json={"model": MODEL, "input": ["a", "b"]})
    check(embeddings.json(), "CreateEmbeddingResponse")
    check(client.get("/v1/models").json(), "ListModelsResponse")
    check(client.get(f"/v1/models/{MODEL}").json(), "Model")
    refused = client.post("/v1/chat/completions", json={"model": MODEL})
    assert refused.status_code == 400
    check(refused.json(), "ErrorResponse")
