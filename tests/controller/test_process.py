"""`python -m controller` as a real process: exit codes, help, stop."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest


def run(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "controller", *args],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=30,
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def running(*args: str) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    port = free_port()
    command = [sys.executable, "-m", "controller", "--port", str(port), *args]
    with (
        subprocess.Popen(command, stderr=subprocess.DEVNULL) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False) as client,
    ):
        try:
            deadline = time.monotonic() + 20
            while not _ready(client):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield process, client
        finally:
            process.kill()


def _ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def test_help_imports_no_torch_and_names_every_flag() -> None:
    program = (
        "import sys, runpy\n"
        "sys.argv = ['controller', '--help']\n"
        "try: runpy.run_module('controller', run_name='__main__')\n"
        "finally: print('heavy:', sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30
    )
    assert shown.returncode == 0, shown.stderr
    assert "heavy: []" in shown.stdout
    for flag in (
        "--host",
        "--port",
        "--log-level",
        "--log-format",
        "--ssl",
        "--cluster-token",
        "--allow-unauthenticated",
        "--dispatch-method",
        "--heartbeat-ttl",
        "{lottery,shortest_queue}",
    ):
        assert flag in shown.stdout


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (("--dispatch-method", "fair"), "--dispatch-method"),
        (("--heartbeat-ttl", "0"), "--heartbeat-ttl"),
        (("--heartbeat-ttl", "inf"), "--heartbeat-ttl"),
        (("--host", "0.0.0.0"), "--cluster-token"),
        (("--no-such-flag",), "--no-such-flag"),
    ],
)
def test_bad_arguments_exit_2_with_one_line(args: tuple[str, ...], reason: str) -> None:
    ended = run(*args)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert reason in ended.stderr


def test_a_bad_environment_exits_2_with_one_line() -> None:
    ended = run(TRIREME_CONTROLLER_DISPATCH_METHOD="fair")
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "fair" in ended.stderr


def test_a_taken_port_exits_4_with_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        ended = run("--port", port)
    assert ended.returncode == 4
    assert ended.stderr.count("\n") == 1
    assert port in ended.stderr


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_waiting_polls_at_once_and_exits_0(sign: signal.Signals) -> None:
    with running("--heartbeat-ttl", "60") as (process, client):
        known = client.get("/fleet").json()
        query = {"after": known["version"], "epoch": known["epoch"], "wait_s": 30}
        answers: list[httpx.Response] = []
        poll = threading.Thread(target=lambda: answers.append(client.get("/fleet", params=query)))
        poll.start()
        time.sleep(0.2)
        began = time.monotonic()
        process.send_signal(sign)
        assert process.wait(10) == 0
        assert time.monotonic() - began < 8
        poll.join(10)
        assert answers[0].json() == known
