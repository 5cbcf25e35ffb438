"""Processes die, clients leave, controllers vanish: what the others notice of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.stack.processes import Stack, Tier, running

CHAT: dict[str, Any] = {"model": "sim", "messages": [{"role": "user", "content": "hello there"}]}
RUNNING = "vllm:num_requests_running"


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    with running(tmp_path) as stack:
        yield stack


def busy_worker(stack: Stack, timeout_s: float = 10.0) -> Tier:
    """The worker that has a request, as soon as one has."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        for worker in stack.workers:
            if worker.process.poll() is None and worker.metric(RUNNING) > 0:
                return worker
        time.sleep(0.02)
    raise AssertionError("no worker has a request")


def text_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


@pytest.mark.parametrize("stream", [False, True])
def test_a_worker_killed_in_the_middle_loses_nothing(stack: Stack, stream: bool) -> None:
    """The answer equals that of an undisturbed run, to the token, and so does the usage."""
    for _ in range(3):
        stack.add_worker("--engine", "sim", "--sim-itl-ms", "10", "--sim-tokens", "300")
    stack.wait_serving()
    body = {**CHAT, "seed": 5, "n": 2, "logprobs": True}
    expected = stack.post("/v1/chat/completions", body).json()
    found: list[Any] = []
    asking = threading.Thread(target=lambda: found.append(folded(stack, body, stream=stream)))
    asking.start()
    killed = busy_worker(stack)
    time.sleep(1.6)
    killed.kill()
    asking.join(30)
    [answer] = found
    assert answer["usage"]["completion_tokens"] == expected["usage"]["completion_tokens"] == 600
    for got, whole in zip(answer["choices"], expected["choices"], strict=True):
        assert got["content"] == whole["message"]["content"]
        assert got["logprobs"] == whole["logprobs"]["content"]
        assert got["finish_reason"] == whole["finish_reason"]
    assert stack.gateway.metric("trireme_gateway_resumed_total") == 1


def folded(stack: Stack, body: dict[str, Any], *, stream: bool) -> dict[str, Any]:
    """Contents, log probabilities and finish reasons of all choices, and the usage."""
    if not stream:
        answer = stack.post("/v1/chat/completions", body).json()
        choices = [
            {
                "content": choice["message"]["content"],
                "logprobs": choice["logprobs"]["content"],
                "finish_reason": choice["finish_reason"],
            }
            for choice in answer["choices"]
        ]
        return {"choices": choices, "usage": answer["usage"]}
    choices = [{"content": "", "logprobs": [], "finish_reason": None} for _ in range(body["n"])]
    usage = None
    asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
    url = f"{stack.gateway.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=asked, timeout=30) as answer:
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue
            frame = json.loads(line.removeprefix("data: "))
            usage = frame["usage"] or usage
            for choice in frame["choices"]:
                one = choices[choice["index"]]
                one["content"] += choice["delta"].get("content") or ""
                one["logprobs"] += (choice["logprobs"] or {}).get("content") or []
                one["finish_reason"] = choice["finish_reason"] or one["finish_reason"]
    return {"choices": choices, "usage": usage}


def stay(stack: Stack, body: dict[str, Any], until: Callable[[], bool]) -> None:
    """Send a request and hang up once `until` holds, or after 0.7 s without a byte."""
    url = f"{stack.gateway.url}/v1/chat/completions"
    with httpx.Client(timeout=0.7) as client, client.stream("POST", url, json=body) as answer:
        for _line in answer.iter_lines():
            if until():
                return


def test_a_worker_killed_before_the_first_token_costs_time_only(stack: Stack) -> None:
    """The answer equals that of an undisturbed run, streamed or not."""
    for _ in range(3):
        stack.add_worker("--engine", "sim", "--sim-ttft-ms", "1500")
    stack.wait_serving()
    body = {**CHAT, "seed": 5, "max_tokens": 8}
    expected = text_of(stack.post("/v1/chat/completions", body))
    for stream in (False, True):
        answers: list[httpx.Response] = []
        request = threading.Thread(
            target=lambda stream=stream, answers=answers: answers.append(
                stack.post("/v1/chat/completions", {**body, "stream": stream})
            )
        )
        request.start()
        busy_worker(stack).kill()
        request.join()
        [answer] = answers
        if not stream:
            assert text_of(answer) == expected
        else:
            assert answer.status_code == 200
            assert answer.text.endswith("data: [DONE]\n\n")
            assert "error" not in answer.text


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("ttft_ms", [0, 60_000], ids=["while decoding", "before the first token"])
def test_a_client_that_leaves_frees_the_engine(stack: Stack, stream: bool, ttft_ms: int) -> None:
    """The engine's running count is 0 again within 300 ms; the bound here allows a busy machine."""
    worker = stack.add_worker(
        "--engine", "sim", "--sim-ttft-ms", str(ttft_ms), "--sim-itl-ms", "20"
    )
    stack.wait_serving()
    body = {**CHAT, "max_tokens": 5000, "stream": stream}
    with contextlib.suppress(httpx.ReadTimeout):
        stay(stack, body, until=lambda: stream and worker.metric(RUNNING) == 1)
    left_at = time.monotonic()
    while worker.metric(RUNNING) > 0:
        assert time.monotonic() - left_at < 2.0
    assert worker.process.poll() is None


def test_requests_go_on_without_a_controller_and_it_comes_back(stack: Stack) -> None:
    stack.add_worker("--engine", "sim")
    stack.wait_serving()
    stack.controller.kill()
    time.sleep(6)  # longer than the lease
    assert text_of(stack.post("/v1/chat/completions", CHAT))
    assert httpx.get(f"{stack.gateway.url}/readyz").status_code == 200


def test_a_drained_worker_finishes_what_it_has(stack: Stack) -> None:
    """SIGTERM to a worker under load: no request fails, and it exits with 0."""
    workers = [
        stack.add_worker("--engine", "sim", "--sim-itl-ms", "10", "--sim-tokens", "100")
        for _ in range(2)
    ]
    stack.wait_serving()
    answers: list[httpx.Response] = []

    def ask(number: int) -> None:
        for turn in range(3):
            content = f"{number} {turn}"
            message = [{"role": "user", "content": content}]
            answers.append(
                stack.post("/v1/chat/completions", {"model": "sim", "messages": message})
            )

    clients = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for client in clients:
        client.start()
    busy_worker(stack)
    assert workers[0].stop() == 0
    for client in clients:
        client.join()
    assert [answer.status_code for answer in answers] == [200] * 18
    assert all(answer.json()["usage"]["completion_tokens"] == 100 for answer in answers)


def test_every_tier_leaves_with_0_on_sigterm(stack: Stack) -> None:
    worker = stack.add_worker("--engine", "sim")
    stack.wait_serving()
    assert stack.gateway.stop() == 0
    assert worker.stop() == 0
    assert stack.controller.stop() == 0


def test_an_engine_killed_under_a_lone_worker_is_waited_for(stack: Stack) -> None:
    """The answer goes on in the next engine of the same worker, token for token."""
    worker = stack.add_worker()
    stack.wait_serving()
    body = {
        "model": httpx.get(f"{stack.gateway.url}/v1/models").json()["data"][0]["id"],
        "messages": CHAT["messages"],
        "temperature": 1.0,
        "seed": 5,
        "max_tokens": 600,
        "ignore_eos": True,
    }
    expected = stack.post("/v1/chat/completions", body)
    found: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: found.append(stack.post("/v1/chat/completions", body)))
    asking.start()
    while worker.metric("vllm:generation_tokens_total") < 700:
        time.sleep(0.02)
    pid = worker.process.pid
    [engine] = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    os.kill(int(engine), signal.SIGKILL)
    asking.join(60)
    [answer] = found
    assert text_of(answer) == text_of(expected)
    assert answer.json()["usage"] == expected.json()["usage"]
    assert worker.process.poll() is None
