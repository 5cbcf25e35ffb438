"""Engines that are stopped, hang, die or raise under a real model: what clients notice of it."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psutil
import pytest

from tests.stack import odd_model
from tests.stack.processes import Stack, Tier, running

STALL_S = 3.0
RESTARTS = "trireme_engine_restarts_total"
STREAM: dict[str, Any] = {
    "model": "odd",
    "prompt": [11, 12, 13, 14],
    "max_tokens": 80,
    "temperature": 1.0,
    "seed": 3,
    "logprobs": 1,
    "stream": True,
    "stream_options": {"include_usage": True},
}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("models") / "odd"
    odd_model.make(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hub")))  # where code is copied to
        with running(tmp_path_factory.mktemp("stack")) as made:
            for _ in range(2):
                worker = made.add_worker(
                    *("--model-path", str(folder), "--trust-remote-code", "--dtype", "float32"),
                    *("--engine-stall-s", str(STALL_S)),
                )
                worker.wait_ready()  # two that load at once take more than twice as long
            made.wait_serving()
            yield made


def engine_of(worker: Tier) -> psutil.Process:
    [engine] = psutil.Process(worker.process.pid).children()
    return engine


def busy_worker(stack: Stack) -> Tier:
    for worker in stack.workers:
        if worker.metric("vllm:num_requests_running") > 0:
            return worker
    raise AssertionError("no worker has a request")


def streamed(
    stack: Stack, disturb: Callable[[], None] = lambda: None
) -> tuple[list[tuple[str, float]], int, float]:
    """Tokens with their log probabilities, the usage and the longest pause; after ten tokens
    `disturb` is called."""
    found: list[tuple[str, float]] = []
    usage, longest_s, last = 0, 0.0, time.monotonic()
    with httpx.stream(
        "POST", f"{stack.gateway.url}/v1/completions", json=STREAM, timeout=60
    ) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            assert "error" not in chunk, chunk
            usage = (chunk.get("usage") or {}).get("completion_tokens", usage)
            for choice in chunk["choices"]:
                longest_s = max(longest_s, time.monotonic() - last)
                last = time.monotonic()
                logprobs = choice["logprobs"] or {"tokens": [], "token_logprobs": []}
                before = len(found)
                found += [
                    (token, round(logprob, 3))
                    for token, logprob in zip(
                        logprobs["tokens"], logprobs["token_logprobs"], strict=True
                    )
                ]
                if before < 10 <= len(found):
                    disturb()
    return found, usage, longest_s


@pytest.fixture(scope="module")
def unbroken(stack: Stack) -> list[tuple[str, float]]:
    found, tokens, _pause = streamed(stack)
    assert len(found) == tokens == 80
    return found


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_stream_whose_engine_is_stopped_or_killed_goes_on_elsewhere(
    stack: Stack, unbroken: list[tuple[str, float]], number: signal.Signals
) -> None:
    """The worker's HTTP process is well all the time; its engine is replaced meanwhile."""
    stack.wait_serving()
    hit: list[tuple[Tier, float]] = []

    def disturb() -> None:
        worker = busy_worker(stack)
        hit.append((worker, worker.metric(RESTARTS)))
        engine_of(worker).send_signal(number)

    found, tokens, longest_s = streamed(stack, disturb)
    assert found == unbroken
    assert tokens == 80
    assert longest_s < STALL_S + 12
    [(worker, restarts)] = hit
    assert worker.process.poll() is None
    worker.wait_ready()
    assert worker.metric(RESTARTS) == restarts + 1


def ask(stack: Stack, *prompt: int, **fields: Any) -> httpx.Response:
    body = {"model": "odd", "prompt": list(prompt), "max_tokens": 20, "temperature": 0, **fields}
    return stack.post("/v1/completions", body)


@pytest.mark.parametrize(
    ("token", "answers"),
    [(odd_model.RAISE, (500, "internal_error")), (odd_model.NO_MEMORY, (200, None))],
    ids=["raises", "finds no memory"],
)
def test_neighbours_of_a_request_that_fails_do_not_notice(
    stack: Stack, token: int, answers: tuple[int, str | None]
) -> None:
    """A prompt for which large steps find no memory is computed in small ones."""
    stack.wait_serving()
    restarts = [worker.metric(RESTARTS) for worker in stack.workers]
    prompts = [(20 + number, 21, 22) for number in range(3)]
    expected = [ask(stack, *prompt).json()["choices"][0]["text"] for prompt in prompts]
    with ThreadPoolExecutor(3) as pool:
        around = [pool.submit(ask, stack, *prompt) for prompt in prompts]
        time.sleep(0.1)
        odd = ask(stack, 30, token, 31, 32)
        assert [one.result().json()["choices"][0]["text"] for one in around] == expected
    code = odd.json()["error"]["code"] if odd.status_code != 200 else None
    assert (odd.status_code, code) == answers
    assert [worker.metric(RESTARTS) for worker in stack.workers] == restarts
    if odd.status_code == 200:
        counts = [worker.metric("trireme_engine_out_of_memory_total") for worker in stack.workers]
        assert sum(counts) > 0


def test_a_slow_step_is_no_hung_one(stack: Stack) -> None:
    """It lasts longer than the limit; each of its layers does not."""
    stack.wait_serving()
    restarts = [worker.metric(RESTARTS) for worker in stack.workers]
    began = time.monotonic()
    assert ask(stack, odd_model.SLOW, max_tokens=1).status_code == 200
    assert time.monotonic() - began > 1.3 * STALL_S
    assert [worker.metric(RESTARTS) for worker in stack.workers] == restarts


def test_a_request_that_hangs_engines_is_quarantined(stack: Stack) -> None:
    """A step that never ends, on one worker and then on the other."""
    stack.wait_serving()
    began = time.monotonic()
    answer = ask(stack, 50, odd_model.HANG)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "request_quarantined")
    assert time.monotonic() - began < 2 * (STALL_S + 12)
    states = [httpx.get(f"{worker.url}/readyz", timeout=5) for worker in stack.workers]
    assert any(
        state.status_code == 503 and "made no progress" in state.json()["reason"]
        for state in states
    )
    records = httpx.get(f"{stack.controller.url}/fleet", timeout=5).json()["workers"]
    assert any("made no progress" in record["reason"] for record in records)
