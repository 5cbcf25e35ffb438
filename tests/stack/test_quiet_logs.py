"""What clients send shows neither in the logs of any tier, at the most talkative level, nor in
metrics, whose number no client can raise."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from protocol.fastchat import GenerateParams
from protocol.fleet import WorkerRecord
from protocol.generation import GenerateRequest, decode_event
from protocol.openai import ChatCompletionRequest
from tests.stack.processes import Tier

KEY, WRONG_KEY = "sk-KEYKEYKEY-1", "sk-WRONGWRONG-2"
TOKEN = "TOKENTOKEN-3"
PROMPT = "PROMPTPROMPT"
SECRETS = (KEY, WRONG_KEY, TOKEN, PROMPT)
MODEL = "m"


class Fleet:
    """A controller, two workers and a gateway that say all they can."""

    def __init__(self, folder: Path) -> None:
        secret = {"TRIREME_CLUSTER_TOKEN": TOKEN}
        loud = ("--log-level", "debug")

        def start(name: str, tier: str, *flags: str, **environment: str) -> Tier:
            made = Tier(tier, folder / f"{name}.log", *loud, *flags, **(secret | environment))
            self.tiers.append(made)
            return made

        self.tiers: list[Tier] = []
        self.controller = start("controller", "controller", "--log-format", "json")
        at = ("--controller-address", self.controller.url)
        sim = ("--engine", "sim", "--model-names", MODEL, "--max-model-len", "512", *at)
        self.workers = [
            start("worker-1", "worker", "--sim-itl-ms", "5", *sim),
            start("worker-2", "worker", "--sim-itl-ms", "5", *sim, "--log-format", "json"),
        ]
        self.gateway = start("gateway", "gateway", *at, TRIREME_GATEWAY_API_KEYS=KEY)
        for tier in self.tiers:
            tier.wait_ready()

    def logs(self) -> str:
        return "".join(tier.log.read_text() for tier in self.tiers)

    def metrics(self) -> str:
        alive = [tier for tier in self.tiers if tier.process.poll() is None]
        return "".join(httpx.get(f"{tier.url}/metrics", timeout=5).text for tier in alive)

    def series(self) -> set[str]:
        """Names and labels; those of time and number apart from their values."""
        lines = self.metrics().splitlines()
        return {line.rpartition(" ")[0] for line in lines if not line.startswith("#")}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    made = Fleet(tmp_path_factory.mktemp("logs"))
    try:
        yield made
    finally:
        for tier in made.tiers:
            tier.kill()


HELLO = [{"role": "user", "content": PROMPT}]
TOOLS = [
    {
        "type": "function",
        "function": {"name": "f", "parameters": {"type": PROMPT, "properties": {PROMPT: {}}}},
    }
]
GOOD: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": HELLO}),
    ("/v1/chat/completions", {"messages": HELLO, "stream": True, "stop": [PROMPT], "user": PROMPT}),
    ("/api/v1/chat/completions", {"messages": PROMPT}),
    ("/v1/completions", {"prompt": [PROMPT, PROMPT], "logprobs": 2, "echo": True}),
    ("/v1/responses", {"input": PROMPT, "instructions": PROMPT}),
    ("/v1/messages", {"messages": HELLO, "max_tokens": 5, "system": PROMPT}),
    ("/v1/messages/count_tokens", {"messages": HELLO}),
    ("/v1/embeddings", {"input": PROMPT}),
    ("/v1/score", {"text_1": PROMPT, "text_2": PROMPT}),
    ("/v1/rerank", {"query": PROMPT, "documents": [PROMPT]}),
    ("/tokenize", {"prompt": PROMPT}),
    ("/detokenize", {"tokens": [1]}),
]
BAD: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": [{"role": PROMPT, "content": PROMPT}]}),
    ("/v1/chat/completions", {"messages": HELLO, PROMPT: PROMPT}),
    ("/v1/chat/completions", {"messages": HELLO, "model": PROMPT}),
    ("/v1/chat/completions", {"messages": HELLO, "temperature": PROMPT}),
    ("/v1/chat/completions", {"messages": HELLO, "logit_bias": {PROMPT: 1}}),
    ("/v1/chat/completions", {"messages": HELLO, "tools": TOOLS, "tool_choice": "required"}),
    ("/v1/chat/completions", {"messages": HELLO, "chat_template_kwargs": {PROMPT: PROMPT}}),
    ("/v1/chat/completions", {"messages": HELLO, "structured_outputs": {"regex": PROMPT + "("}}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": PROMPT * 1000}]}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": PROMPT + "\ud800"}]}),
    ("/v1/completions", {"prompt": PROMPT * 1000}),
    ("/v1/completions", {"prompt": PROMPT, "max_tokens": 10**6}),
    ("/v1/responses", {"previous_response_id": PROMPT, "input": PROMPT}),
    ("/v1/embeddings", {"input": [PROMPT, ""], "dimensions": 10**4}),
]


def body(fields: dict[str, Any]) -> bytes:
    """With lone surrogates as escapes."""
    return json.dumps({"model": MODEL, **fields}).encode()


@pytest.fixture
def client(fleet: Fleet) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    with httpx.Client(base_url=fleet.gateway.url, headers=headers, timeout=30) as made:
        yield made


def test_no_client_can_make_a_series(fleet: Fleet, client: httpx.Client) -> None:
    """A new name in every place that a client fills, over and over."""
    rng = random.Random(7)
    others = [httpx.Client(base_url=one.url) for one in (fleet.controller, fleet.workers[0])]

    def ask(name: str) -> None:
        chat = {"messages": HELLO, "model": name}
        client.post("/v1/chat/completions", content=body(chat))
        client.post(f"/v1/engines/{name}/embeddings", content=body({"input": "x", "model": name}))
        client.get(f"/v1/models/{name}")
        client.get(f"/{name}")
        client.post("/v1/models", headers={"authorization": f"Bearer {name}"})
        client.post(
            "/v1/chat/completions",
            content=body({"messages": HELLO, "max_tokens": 1, "user": name}),
            headers={"x-request-id": name, "user-agent": name, "origin": f"https://{name}"},
        )
        for other in others:
            other.get(f"/{name}", headers={"authorization": f"Bearer {name}"})

    ask("first")
    before = fleet.series()
    for _ in range(150):
        ask("".join(rng.choices(string.ascii_lowercase, k=12)))
    for other in others:
        other.close()
    assert len(before) > 50
    new = {line for line in fleet.series() - before if "_bucket" not in line}
    assert len(new) < 8, sorted(new)  # such as the second worker's, or Python's own


def test_neither_logs_nor_metrics_hold_what_clients_send(
    fleet: Fleet, client: httpx.Client
) -> None:
    wrong = {"authorization": f"Bearer {WRONG_KEY}", "x-api-key": WRONG_KEY}
    for path, fields in GOOD:
        answer = client.post(path, content=body(fields))
        assert answer.status_code == 200, (path, answer.text)
        assert client.post(path, content=body(fields), headers=wrong).status_code == 401
    for path, fields in BAD:
        assert 400 <= client.post(path, content=body(fields)).status_code < 500, fields
    for broken in (f'{{"model": "{PROMPT}', f'"{PROMPT}"', f"{PROMPT}", f'{{"{PROMPT}": 1}}'):
        for path, _ in GOOD:
            assert client.post(path, content=broken).status_code == 400
    direct = {"authorization": f"Bearer {TOKEN}"}
    for tier, path, sent in (
        (fleet.workers[0], "/native/generate", {"prompt": PROMPT, "nope": PROMPT}),
        (fleet.workers[0], "/worker_generate", {"prompt": PROMPT, "stop": PROMPT}),
        (fleet.workers[0], "/count_token", {"prompt": {PROMPT: 1}}),
        (fleet.controller, "/worker_generate_stream", {"prompt": PROMPT, "model": MODEL}),
        (fleet.controller, "/register_worker", {"worker_name": {PROMPT: 1}}),
    ):
        httpx.post(tier.url + path, json=sent, headers=direct, timeout=30)
        httpx.post(tier.url + path, json=sent, headers=wrong, timeout=30)
    # a worker dies in the middle of an answer, another goes on; then nobody is left
    long = body({"messages": HELLO, "stream": True, "max_tokens": 300})
    for worker in fleet.workers:
        with (
            contextlib.suppress(httpx.TransportError),
            client.stream("POST", "/v1/chat/completions", content=long) as streamed,
        ):
            for number, _ in enumerate(streamed.iter_lines()):
                if number == 6:
                    worker.process.send_signal(signal.SIGKILL)
                    worker.process.wait()
    client.post("/v1/chat/completions", content=long)
    told, shown = fleet.logs(), fleet.metrics()
    assert "POST /v1/chat/completions 200" in told, "the logs are not empty"
    assert "failed a request" in told
    for secret in SECRETS:
        lines = [line for line in told.splitlines() if secret in line]
        assert lines == [], secret
        assert secret not in shown


def test_a_fault_of_ours_is_logged_without_the_request() -> None:
    """The schemas of the wires do not repeat their input when something does not fit."""
    wrong = {"request_id": {"a": PROMPT}, "model": [PROMPT], "prompt": 5, "address": [PROMPT]}
    for schema in (GenerateRequest, WorkerRecord, GenerateParams, ChatCompletionRequest):
        with pytest.raises(ValidationError) as caught:
            schema.model_validate(wrong)
        assert PROMPT not in str(caught.value), schema
    with pytest.raises(ValueError, match="not an event") as unread:
        decode_event(b'{"kind": "delta", "nope": "' + PROMPT.encode() + b'"}')
    assert PROMPT not in str(unread.value)
