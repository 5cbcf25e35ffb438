"""What gateways and workers count of the same requests, over real processes."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

import httpx

from gateway.drift import LOOK_EVERY_S, LOOKS
from tests.stack.processes import Stack, Tier, running

DRIFT = "trireme_gateway_in_flight_drift"


def test_aborts_and_a_killed_gateway_leave_no_drift(tmp_path: Path) -> None:
    with running(tmp_path) as stack:
        stack.add_worker("--engine", "sim", "--sim-itl-ms", "20", "--sim-tokens", "620")
        other = stack.add_gateway()
        stack.wait_serving()
        other.wait_ready()
        asking = [ask(stack.gateway, leave_after_s=at) for at in (1.5, 2, 60, 60, 60)]
        asking += [ask(other, leave_after_s=60) for _ in range(3)]
        until_counted(stack, [3, 5])
        time.sleep(0.6)
        other.kill()
        until_counted(stack, [3])
        for _ in range(LOOKS + 1):
            time.sleep(LOOK_EVERY_S)
            assert stack.gateway.metric(DRIFT) == 0
        for one in asking:
            one.join(30)
        until_counted(stack, [])
        assert stack.gateway.metric(DRIFT) == 0
        assert "than there are" not in stack.gateway.log.read_text()


def ask(gateway: Tier, leave_after_s: float) -> threading.Thread:
    """A streamed request whose client leaves after a while, if it is not over before."""

    def read() -> None:
        body = {"model": "sim", "messages": [{"role": "user", "content": "hi"}], "stream": True}
        url, begun = f"{gateway.url}/v1/chat/completions", time.monotonic()
        with (
            contextlib.suppress(httpx.TransportError),
            httpx.stream("POST", url, json=body, timeout=60) as answer,
        ):
            for _ in answer.iter_lines():
                if time.monotonic() - begun > leave_after_s:
                    return

    thread = threading.Thread(target=read)
    thread.start()
    return thread


def until_counted(stack: Stack, counts: list[int], timeout_s: float = 10.0) -> None:
    """Until the worker has said that it serves so many requests of each gateway."""
    found: list[int] = []
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        [worker] = httpx.get(f"{stack.controller.url}/fleet", timeout=5).json()["workers"]
        found = sorted(worker["serving"].values())
        if found == counts:
            return
        time.sleep(0.05)
    raise AssertionError(f"the worker counts {found}, not {counts}")
