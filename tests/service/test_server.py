"""The process shell on real processes: port, TLS, drain, second signal, exit codes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trustme

SAMPLE = Path(__file__).with_name("sample_tier.py")


@contextlib.contextmanager
def running(
    *flags: str, drain_s: float = 0, exit_code: int = 0, **environment: str
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    root = str(SAMPLE.parents[2])
    command = [sys.executable, str(SAMPLE), str(drain_s), str(exit_code), "--port", "0", *flags]
    with subprocess.Popen(
        command,
        env=os.environ | {"PYTHONPATH": root} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


def client_of(port: int) -> httpx.Client:
    transport = httpx.HTTPTransport(retries=5)
    return httpx.Client(
        base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False, transport=transport
    )


def wait_for_state(client: httpx.Client, state: str) -> None:
    deadline = time.monotonic() + 10
    while client.get("/state").json() != state:
        assert time.monotonic() < deadline


def test_a_taken_port_is_exit_code_4_and_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = subprocess.run(
            [sys.executable, str(SAMPLE), "0", "0", "--port", port],
            env=os.environ | {"PYTHONPATH": str(SAMPLE.parents[2])},
            capture_output=True,
            text=True,
            timeout=30,
        )
    assert ended.returncode == 4
    assert ended.stderr == f"sample: port {port} on 127.0.0.1 is in use\n"


def test_it_says_where_it_listens() -> None:
    with subprocess.Popen(
        [sys.executable, str(SAMPLE), "0", "0", "--port", "0"],
        env=os.environ | {"PYTHONPATH": str(SAMPLE.parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        port = int(process.stdout.readline())
        assert process.stderr.readline().endswith(f" listening on http://127.0.0.1:{port}\n")
        process.kill()


def test_requests_are_served_while_draining_and_running_ones_end() -> None:
    with running(drain_s=0.6) as (process, port), client_of(port) as client:
        wait_for_state(client, "serving")
        answers: list[str] = []

        def ask() -> None:
            with client_of(port) as other:
                answers.append(other.get("/slow/1.2").json())

        slow = threading.Thread(target=ask)
        slow.start()
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        wait_for_state(client, "draining")
        assert process.wait(15) == 0
        slow.join(10)
        assert answers == ["done"]


def test_a_second_signal_stops_at_once() -> None:
    with running(drain_s=60) as (process, port), client_of(port) as client:
        wait_for_state(client, "serving")
        process.send_signal(signal.SIGTERM)
        wait_for_state(client, "draining")
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.wait(10)
        assert time.monotonic() - began < 5


def test_the_app_may_end_its_process_with_a_code_of_its_own() -> None:
    with running(exit_code=3) as (process, port), client_of(port) as client:
        client.get("/exit")
        assert process.wait(15) == 3


def test_https_with_the_files_of_the_environment(tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1", "localhost")
    key, chain = tmp_path / "key.pem", tmp_path / "chain.pem"
    issued.private_key_pem.write_to_path(key)
    for number, blob in enumerate(issued.cert_chain_pems):
        blob.write_to_path(chain, append=number > 0)
    trusted = ssl.create_default_context()
    authority.configure_trust(trusted)
    with (
        running("--ssl", SSL_KEYFILE=str(key), SSL_CERTFILE=str(chain)) as (process, port),
        httpx.Client(verify=trusted, trust_env=False, timeout=20) as client,
    ):
        assert client.get(f"https://127.0.0.1:{port}/state").json() == "serving"
        with pytest.raises(httpx.TransportError):
            client.get(f"http://127.0.0.1:{port}/state")
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
