"""Workers drain under load, over real processes: nothing fails, and they are gone at once."""

from __future__ import annotations

import json
import os
import re
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
HELLO: dict[str, Any] = {"model": "sim", "messages": [{"role": "user", "content": "hi"}]}
SOON_S = 1.5
"""A drain that is acknowledged; one that is not takes a lease of 5 s."""
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


def busy(*workers: Tier) -> Tier:
    """The first of them that has a request, as soon as one has."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for worker in workers:
            if worker.metric(RUNNING) > 0:
                return worker
        time.sleep(0.02)
    raise AssertionError("no worker has a request")


def seconds_to_stop(tier: Tier) -> float:
    """SIGTERM, and exit code 0."""
    begun = time.monotonic()
    assert tier.stop() == 0
    return time.monotonic() - begun


def test_a_drain_is_acknowledged_fails_nothing_and_takes_no_longer_than_it_must(
    stack: Stack,
) -> None:
    loaded, idle, alone = (stack.add_worker(*SLOW) for _ in range(3))
    stack.wait_serving()
    clients = Clients(stack, count=8, tokens=60)
    busy(loaded)
    assert seconds_to_stop(loaded) < 0.6 + SOON_S, "what ran takes 0.6 s"
    clients.stop()
    assert seconds_to_stop(idle) < SOON_S
    shown = httpx.get(f"{stack.gateway.url}/metrics").text
    assert "trireme_gateway_resumed_total{" not in shown, "all was finished where it began"
    assert stack.gateway.stop() == 0
    assert seconds_to_stop(alone) < SOON_S, "the gateway has said goodbye"
    for worker in (loaded, idle, alone):
        assert "not every gateway" not in worker.log.read_text()


def test_what_outlasts_the_grace_goes_on_elsewhere_token_for_token(stack: Stack) -> None:
    workers = [stack.add_worker(*SLOW, "--drain-grace-s", "0.3") for _ in range(2)]
    stack.wait_serving()
    body: dict[str, Any] = {
        **{"model": "sim", "messages": [{"role": "user", "content": "hi"}]},
        **{"seed": 3, "n": 2, "max_tokens": 250},
    }
    for stream in (False, True):
        asked = {**body, "stream": stream}
        expected = stack.post(CHAT, asked)
        answers: list[httpx.Response] = []
        asking = threading.Thread(
            target=lambda asked=asked, answers=answers: answers.append(stack.post(CHAT, asked))
        )
        asking.start()
        drained = busy(*workers)
        assert seconds_to_stop(drained) < 0.3 + SOON_S
        asking.join()
        assert _told(answers[0], stream) == _told(expected, stream)
        assert _handed_over(stack.gateway) == 1 + stream
        workers.remove(drained)
        workers.append(stack.add_worker(*SLOW, "--drain-grace-s", "0.3"))
        stack.wait_serving()


def _handed_over(gateway: Tier) -> float:
    """Requests that went on elsewhere, from their start where nothing had been sent."""
    shown = httpx.get(f"{gateway.url}/metrics").text
    found = re.findall(r'^trireme_gateway_re\w+_total\{.*"draining".*\} (\S+)', shown, re.MULTILINE)
    return sum(map(float, found))


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
            for choice in json.loads(line.removeprefix("data: "))["choices"]:
                texts[choice["index"]] += choice["delta"].get("content") or ""
    return texts


def test_with_nobody_to_go_on_a_request_outlasts_the_grace_and_a_second_sigterm_ends_it(
    stack: Stack,
) -> None:
    patient = stack.add_worker(*SLOW, "--drain-grace-s", "2.5")
    stack.wait_serving()
    clients = Clients(stack, count=1, tokens=400)
    busy(patient)
    stopping = threading.Thread(target=clients.stop)
    stopping.start()
    assert 2.5 < seconds_to_stop(patient) < 2 * 2.5 + SOON_S
    stopping.join()
    assert len(clients.answers) == 1

    stubborn = stack.add_worker(*SLOW)
    stack.wait_serving()
    asking = threading.Thread(target=lambda: stack.post(CHAT, HELLO))
    asking.start()
    busy(stubborn)
    stubborn.process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert stubborn.process.poll() is None
    stubborn.process.send_signal(signal.SIGTERM)
    stubborn.process.wait(10)
    asking.join()


def test_a_gateway_serves_on_a_moment_and_tells_what_outlasts_its_grace(stack: Stack) -> None:
    worker = stack.add_worker(*SLOW)
    polite = stack.add_gateway("--drain-delay-s", "4")
    hasty = stack.add_gateway("--drain-delay-s", "0", "--drain-grace-s", "0.5")
    stack.wait_serving()
    polite.wait_ready()
    hasty.wait_ready()
    short = {**HELLO, "max_tokens": 2}
    with httpx.Client(base_url=polite.url, timeout=10) as client:
        assert "connection" not in client.post(CHAT, json=short).headers
        polite.process.send_signal(signal.SIGTERM)
        while client.get("/readyz").status_code == 200:
            time.sleep(0.02)
        answer = client.post(CHAT, json=short)
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
    assert polite.process.wait(15) == 0

    found: dict[bool, httpx.Response] = {}

    def ask(stream: bool) -> None:
        body = {**HELLO, "stream": stream}
        found[stream] = httpx.post(f"{hasty.url}{CHAT}", json=body, timeout=30)

    clients = [threading.Thread(target=ask, args=(stream,)) for stream in (False, True)]
    for one in clients:
        one.start()
    while worker.metric(RUNNING) < 2:
        time.sleep(0.02)
    assert seconds_to_stop(hasty) < 0.5 + SOON_S
    for one in clients:
        one.join()
    assert found[False].status_code == 503
    assert found[False].json()["error"]["code"] == "draining"
    *_, last = [line for line in found[True].text.splitlines() if line]
    assert '"draining"' in last
    freed_by = time.monotonic() + 10
    while worker.metric(RUNNING) > 0:
        assert time.monotonic() < freed_by


def test_rolling_restarts_of_every_tier_fail_nothing(stack: Stack) -> None:
    for _ in range(2):
        stack.add_worker(*SLOW, "--drain-grace-s", "0.2")
    stack.wait_serving()
    clients = Clients(stack, count=6, tokens=80)
    for worker in list(stack.workers):
        assert worker.stop() == 0
        worker.start()
        stack.wait_serving()
    assert stack.controller.stop() == 0
    time.sleep(0.5)
    stack.controller.start()
    stack.controller.wait_ready()
    stack.wait_serving()
    clients.stop()
    assert stack.gateway.stop() == 0
    assert " is gone" not in stack.gateway.log.read_text()


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
    assert first.process.wait(10) == 0
    clients.stop()

    unknown = trireme("drain", first.url, *at)
    assert unknown.returncode == 1
    assert "there is no worker" in unknown.stderr

    asking = threading.Thread(target=lambda: stack.post(CHAT, HELLO))
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
