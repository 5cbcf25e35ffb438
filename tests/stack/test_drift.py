"""What gateways and workers count of the same requests, over real processes."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from gateway.drift import LOOK_EVERY_S, LOOKS
from tests.stack.processes import Stack, Tier, running

DRIFT = "trireme_gateway_in_flight_drift"


def test_aborts_and_a_killed_gateway_leave_no_drift(tmp_path: Path) -> None:
    with running(tmp_path) as stack, contextlib.ExitStack() as clients:
        stack.add_worker("--engine", "sim", "--sim-itl-ms", "20", "--sim-tokens", "6000")
        other = stack.add_gateway()
        stack.wait_serving()
        other.wait_ready()
        leaving = [clients.enter_context(asking(stack.gateway)) for _ in range(2)]
        staying = [clients.enter_context(asking(stack.gateway)) for _ in range(3)]
        for _ in range(3):
            clients.enter_context(asking(other))
        until_counted(stack, [3, 5])
        for leave in leaving:
            leave.set()
        other.kill()
        until_counted(stack, [3])
        for _ in range(LOOKS + 1):
            time.sleep(LOOK_EVERY_S)
            assert stack.gateway.metric(DRIFT) == 0
        for leave in staying:
            leave.set()
        until_counted(stack, [])
        assert stack.gateway.metric(DRIFT) == 0
        assert "than there are" not in stack.gateway.log.read_text()


@contextlib.contextmanager
def asking(gateway: Tier) -> Iterator[threading.Event]:
    """A streamed request whose client leaves once the event is set, if it is not over before."""
    leave = threading.Event()

    def read() -> None:
        body = {"model": "sim", "messages": [{"role": "user", "content": "hi"}], "stream": True}
        with (
            contextlib.suppress(httpx.TransportError),
            httpx.stream(
                "POST", f"{gateway.url}/v1/chat/completions", json=body, timeout=60
            ) as answer,
        ):
            for _ in answer.iter_lines():
                if leave.is_set():
                    return

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield leave
    finally:
        leave.set()
        thread.join(30)


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
