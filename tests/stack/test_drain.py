"""Workers drain under load, over real processes: nothing fails, and they are gone at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.stack.processes import ROOT, Stack, Tier, running

CHAT = "/v1/chat/completions"
RUNNING = "vllm:num_requests_running"
SLOW = ("--engine", "sim", "--sim-itl-ms", "10", "--sim-tokens", "5000")


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    with running(tmp_path) as stack:
        yield stack


class Clients:
    """Threads that ask one request after the other until `stop`."""

    def __init__(self, stack: Stack, count: int, tokens: int) -> None:
        self.answers: list[httpx.Response | Exception] = []
        self._tokens = tokens
        self._stack = stack
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(number,)) for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def _ask(self, number: int) -> None:
        turn = 0
        while not self._over.is_set():
            turn += 1
            messages = [{"role": "user", "content": f"{number} {turn}"}]
            body = {"model": "sim", "messages": messages, "max_tokens": self._tokens}
            try:
                self.answers.append(self._stack.post(CHAT, {**body, "stream": bool(turn % 2)}))
            except httpx.HTTPError as error:
                self.answers.append(error)

    def stop(self) -> None:
        """Let the running requests end, and check all answers."""
        self._over.set()
        for thread in self._threads:
            thread.join()
        bad = [one for one in self.answers if isinstance(one, Exception) or not self._whole(one)]
        assert not bad, bad[:3]

    def _whole(self, answer: httpx.Response) -> bool:
        if answer.status_code != 200:
            return False
        if "event-stream" in answer.headers["content-type"]:
            return answer.text.endswith("data: [DONE]\n\n") and '"error"' not in answer.text
        return bool(answer.json()["usage"]["completion_tokens"] == self._tokens)


def busy(worker: Tier) -> None:
    """Wait until it has a request."""
    deadline = time.monotonic() + 10
    while worker.metric(RUNNING) == 0:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_drain_under_load_fails_nothing_and_is_acknowledged(stack: Stack) -> None:
    workers = [stack.add_worker(*SLOW) for _ in range(2)]
    stack.wait_serving()
    clients = Clients(stack, count=8, tokens=60)
    busy(workers[0])
    begun = time.monotonic()
    assert workers[0].stop() == 0
    took_s = time.monotonic() - begun
    clients.stop()
    assert took_s < 0.6 + 1.5, "what ran takes 0.6 s, and it goes less than a second later"
    assert "not every gateway" not in workers[0].log.read_text()
    shown = httpx.get(f"{stack.gateway.url}/metrics").text
    assert "trireme_gateway_resumed_total{" not in shown, "all was finished where it began"


def test_an_idle_worker_goes_at_once_with_a_gateway_and_without(stack: Stack) -> None:
    first, second = (stack.add_worker("--engine", "sim") for _ in range(2))
    stack.wait_serving()
    for worker, ends_before in ((first, None), (second, stack.gateway)):
        if ends_before is not None:
            assert ends_before.stop() == 0
        begun = time.monotonic()
        assert worker.stop() == 0
        assert time.monotonic() - begun < 1.5
        assert "not every gateway" not in worker.log.read_text()


@pytest.mark.parametrize("stream", [False, True])
def test_what_outlasts_the_grace_goes_on_elsewhere_token_for_token(
    stack: Stack, stream: bool
) -> None:
    workers = [stack.add_worker(*SLOW, "--drain-grace-s", "0.3") for _ in range(2)]
    stack.wait_serving()
    body: dict[str, Any] = {
        **{"model": "sim", "messages": [{"role": "user", "content": "hi"}]},
        **{"seed": 3, "n": 2, "max_tokens": 250, "stream": stream},
    }
    expected = stack.post(CHAT, body)
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(stack.post(CHAT, body)))
    asking.start()
    drained = max(_after(0.5, workers), key=lambda worker: worker.metric(RUNNING))
    begun = time.monotonic()
    assert drained.stop() == 0
    assert time.monotonic() - begun < 0.3 + 1.5
    asking.join()
    assert _told(answers[0], stream) == _told(expected, stream)
    assert stack.gateway.metric("trireme_gateway_resumed_total") == 1


def _after(seconds: float, workers: list[Tier]) -> list[Tier]:
    time.sleep(seconds)
    return workers


def _told(answer: httpx.Response, stream: bool) -> Any:
    """Everything but ids and times."""
    assert answer.status_code == 200, answer.text
    if not stream:
        whole = answer.json()
        return [whole["choices"], whole["usage"]]
    assert answer.text.endswith("data: [DONE]\n\n")
    texts = ["", ""]
    for line in answer.text.splitlines():
        if line.startswith("data: {"):
            for choice in httpx.Response(200, text=line[6:]).json()["choices"]:
                texts[choice["index"]] += choice["delta"].get("content") or ""
    return texts


def test_with_nobody_to_go_on_a_request_is_finished_beyond_the_grace(stack: Stack) -> None:
    worker = stack.add_worker(*SLOW, "--drain-grace-s", "1.5")
    stack.wait_serving()
    clients = Clients(stack, count=1, tokens=220)
    busy(worker)
    stopping = threading.Thread(target=clients.stop)
    stopping.start()
    assert worker.stop() == 0
    stopping.join()
    assert len(clients.answers) == 1


def test_a_gateway_that_drains_serves_on_a_moment_and_ends_connections(tmp_path: Path) -> None:
    with running(tmp_path) as stack:
        stack.add_worker("--engine", "sim")
        gateway = stack.add_gateway("--drain-delay-s", "2")
        stack.wait_serving()
        gateway.wait_ready()
        body = {"model": "sim", "messages": [{"role": "user", "content": "hi"}]}
        with httpx.Client(base_url=gateway.url, timeout=10) as client:
            assert "connection" not in client.post(CHAT, json=body).headers
            gateway.process.send_signal(signal.SIGTERM)
            while client.get("/readyz").status_code == 200:
                time.sleep(0.02)
            answer = client.post(CHAT, json=body)
            assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        begun = time.monotonic()
        assert gateway.process.wait(10) == 0
        assert time.monotonic() - begun < 3


def test_what_outlasts_a_gateways_grace_is_told_so(tmp_path: Path) -> None:
    with running(tmp_path) as stack:
        worker = stack.add_worker(*SLOW)
        gateway = stack.add_gateway("--drain-delay-s", "0", "--drain-grace-s", "0.5")
        stack.wait_serving()
        gateway.wait_ready()
        body = {"model": "sim", "messages": [{"role": "user", "content": "hi"}]}
        found: dict[bool, httpx.Response] = {}

        def ask(stream: bool) -> None:
            url = f"{gateway.url}{CHAT}"
            found[stream] = httpx.post(url, json={**body, "stream": stream}, timeout=30)

        clients = [threading.Thread(target=ask, args=(stream,)) for stream in (False, True)]
        for client in clients:
            client.start()
        while worker.metric(RUNNING) < 2:
            time.sleep(0.02)
        begun = time.monotonic()
        assert gateway.stop() == 0
        assert time.monotonic() - begun < 0.5 + 1.5
        for client in clients:
            client.join()
        assert found[False].status_code == 503
        assert found[False].json()["error"]["code"] == "draining"
        *_, last = [line for line in found[True].text.splitlines() if line]
        assert '"draining"' in last
        while worker.metric(RUNNING) > 0:
            assert time.monotonic() - begun < 5, "the worker frees its slots"


def test_rolling_restarts_of_every_tier_fail_nothing(tmp_path: Path) -> None:
    with running(tmp_path) as stack:
        for _ in range(2):
            stack.add_worker(*SLOW, "--drain-grace-s", "0.2")
        stack.wait_serving()
        clients = Clients(stack, count=6, tokens=80)
        for worker in list(stack.workers):
            assert worker.stop() == 0
            stack.workers.remove(worker)
            stack.add_worker(*SLOW, "--drain-grace-s", "0.2")
            stack.wait_serving()
        assert stack.controller.stop() == 0
        time.sleep(0.5)
        stack.controller.start()
        begun = time.monotonic()
        while len(_known(stack)) < 2:
            assert time.monotonic() - begun < 10
        clients.stop()
        assert stack.gateway.stop() == 0
    log = stack.gateway.log.read_text()
    assert " is gone" not in log


def _known(stack: Stack) -> set[str]:
    try:
        return stack.known()
    except httpx.TransportError:
        return set()


def test_a_second_sigterm_ends_it_at_once(stack: Stack) -> None:
    worker = stack.add_worker(*SLOW)
    stack.wait_serving()
    body = {"model": "sim", "messages": [{"role": "user", "content": "hi"}]}
    asking = threading.Thread(target=lambda: stack.post(CHAT, body))
    asking.start()
    busy(worker)
    worker.process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert worker.process.poll() is None
    worker.process.send_signal(signal.SIGTERM)
    worker.process.wait(1.5)
    asking.join()


def trireme(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "trireme.cli", *args],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "200", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_trireme_drain_ends_a_worker_and_loses_nothing(stack: Stack) -> None:
    first, second = (stack.add_worker(*SLOW) for _ in range(2))
    stack.wait_serving()
    at = ("--controller-address", stack.controller.url)
    clients = Clients(stack, count=4, tokens=150)
    busy(first)
    drained = trireme("drain", first.url, *at)
    assert drained.returncode == 0, drained.stderr
    assert f"{first.url} is gone" in drained.stdout
    assert first.process.wait(1) == 0
    clients.stop()

    unknown = trireme("drain", first.url, *at)
    assert unknown.returncode == 1
    assert "there is no worker" in unknown.stderr

    body = {"model": "sim", "messages": [{"role": "user", "content": "hi"}]}
    asking = threading.Thread(target=lambda: stack.post(CHAT, body))
    asking.start()
    busy(second)
    [listed] = httpx.get(f"{stack.controller.url}/fleet/workers").json()["workers"]
    late = trireme("drain", listed["instance_id"][:8], *at, "--timeout-s", "0.5")
    assert late.returncode == 1
    assert "still drains after 0.5 s, 1 request left" in late.stderr
    again = trireme("drain", second.url, *at)
    assert "is draining already, 1 request left" in again.stderr
    second.kill()
    asking.join()
    unreachable = trireme("drain", second.url, *at)
    assert unreachable.returncode == 1
    assert "cannot be reached" in unreachable.stderr
