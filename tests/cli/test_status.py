"""`trireme status` against a real controller."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.types import ASGIApp

from controller.app import create_app
from controller.config import ControllerSettings
from protocol import __version__
from trireme.cli.status import duration

Serve = Callable[[ASGIApp], str]
Trireme = Callable[..., subprocess.CompletedProcess[str]]

WORKER: dict[str, Any] = {
    "instance_id": "0123456789abcdef",
    "address": "http://10.0.0.7:21002",
    "models": [
        {"name": "first", "context_length": 131072, "engine": "paged"},
        {"name": "second", "context_length": 2048, "engine": "paged"},
    ],
    "load": {"running": 3, "waiting": 12, "kv_free": 0.75, "decode_tps": 1234.4, "capacity": 64},
}


def controller(serve: Serve, **settings: Any) -> str:
    return serve(create_app(ControllerSettings(**settings)))


def fill(url: str) -> None:
    with httpx.Client(base_url=url, trust_env=False) as client:
        client.put("/fleet/workers/0123456789abcdef", json=WORKER).raise_for_status()
        status = {"model_names": ["vicuna"], "speed": 1, "queue_length": 2}
        client.post(
            "/register_worker", json={"worker_name": "http://fc:1", "worker_status": status}
        ).raise_for_status()


def test_the_table_shows_workers_models_and_load(serve: Serve, trireme: Trireme) -> None:
    url = controller(serve)
    fill(url)
    shown = trireme("status", "--controller-address", url)
    assert shown.returncode == 0, shown.stderr
    rows = [line.split("│")[1:-1] for line in shown.stdout.splitlines() if "│" in line]
    cells = [[cell.strip() for cell in row] for row in rows]
    assert cells[0][:10] == [
        *("01234567", "http://10.0.0.7:21002", "first", "ready", "paged", "131,072"),
        *("3/64", "12", "25%", "1,234"),
    ]
    assert cells[1][:6] == ["", "", "second", "ready", "paged", "2,048"]
    assert cells[2][1:8] == ["http://fc:1", "vicuna", "ready", "FastChat", "?", "?", "2"]
    assert "has just started" in shown.stdout


def test_a_narrow_terminal_gets_fewer_columns(
    serve: Serve, command_environment: dict[str, str]
) -> None:
    url = controller(serve)
    fill(url)
    shown = subprocess.run(
        [sys.executable, "-m", "trireme.cli", "status", "--controller-address", url],
        env=command_environment | {"COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert max(map(len, shown.splitlines())) <= 80
    [row] = [line for line in shown.splitlines() if "10.0.0.7:21002" in line and "first" in line]
    cells = [cell.strip() for cell in row.split("│")[1:-1]]
    assert cells == ["01234567", "10.0.0.7:21002", "first", "ready", "131,072", "3/64", "12"]


def test_a_worker_that_has_failed_says_why(serve: Serve, trireme: Trireme) -> None:
    url = controller(serve)
    failed = {**WORKER, "state": "failed", "reason": "restarting the engine: signal 9"}
    path = f"{url}/fleet/workers/{WORKER['instance_id']}"
    httpx.put(path, json=failed, trust_env=False).raise_for_status()
    shown = trireme("status", "--controller-address", url)
    assert "01234567: restarting the engine: signal 9" in " ".join(shown.stdout.split())


def test_an_empty_fleet_says_so(serve: Serve, trireme: Trireme) -> None:
    shown = trireme("status", "--controller-address", controller(serve))
    assert shown.returncode == 0
    assert "no worker is registered" in shown.stdout


def test_json_is_one_object(serve: Serve, trireme: Trireme) -> None:
    url = controller(serve)
    fill(url)
    shown = trireme("status", "--json", "--controller-address", url)
    fleet = json.loads(shown.stdout)
    assert [each["address"] for each in fleet["workers"]] == [
        "http://10.0.0.7:21002",
        "http://fc:1",
    ]
    assert fleet["workers"][0]["load"]["waiting"] == 12
    assert fleet["workers"][0]["heard_s"] >= 0


def test_a_cluster_token_is_asked_for_and_taken(serve: Serve, trireme: Trireme) -> None:
    url = controller(serve, cluster_token="geheim")
    refused = trireme("status", "--controller-address", url)
    assert refused.returncode == 1
    assert "TRIREME_CLUSTER_TOKEN" in refused.stderr
    shown = trireme("status", "--controller-address", url, "--cluster-token", "geheim")
    assert shown.returncode == 0


def test_nobody_there_and_somebody_else_there(serve: Serve, trireme: Trireme) -> None:
    nobody = trireme("status", "--controller-address", "http://127.0.0.1:1")
    assert nobody.returncode == 1
    assert "no controller answers at http://127.0.0.1:1" in nobody.stderr
    other = trireme("status", "--controller-address", serve(Starlette()))
    assert other.returncode == 1
    assert "answers 404" in other.stderr


def test_watching_goes_on_until_ctrl_c(serve: Serve, command_environment: dict[str, str]) -> None:
    url = controller(serve)
    fill(url)
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "trireme.cli", "status", "-w", "--controller-address", url]
    with subprocess.Popen(
        command, env=command_environment, stdin=slave, stdout=slave, stderr=slave
    ) as process:
        os.close(slave)
        shown = b""
        deadline = time.monotonic() + 20
        while shown.count(b"10.0.0.7") < 2:
            assert time.monotonic() < deadline
            shown += os.read(master, 4096)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    os.close(master)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.42, "0.4 s"),
        (59.9, "59 s"),
        (125, "2 m 05 s"),
        (3 * 3600 + 1200, "3 h 20 m"),
        (5 * 86400 + 7200, "5 d 02 h"),
    ],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_of_several_controllers_the_first_that_answers_is_asked(
    serve: Serve, trireme: Trireme
) -> None:
    url = controller(serve)
    fill(url)
    for command in (("status",), ("drain", "nobody")):
        shown = trireme(*command, "--controller-address", f"http://127.0.0.1:1, {url}/")
        assert "Traceback" not in shown.stderr
        assert "01234567" in shown.stdout or "there is no worker 'nobody'" in shown.stderr
    none = trireme("status", "--controller-address", "http://127.0.0.1:1,http://127.0.0.1:2")
    assert none.returncode == 1
    assert "127.0.0.1:1 (" in none.stderr
    assert "127.0.0.1:2 (" in none.stderr


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("localhost:18021", "write http://localhost:18021"),
        ("http://localhost:99999", "no base URL such as http://localhost:21001"),
        ("ftp://localhost", "no base URL such as http://localhost:21001"),
        (",", "give at least one address"),
    ],
)
@pytest.mark.parametrize("command", [("status",), ("drain", "x"), ("why", "x")])
def test_an_address_that_is_none_is_one_line(
    trireme: Trireme, command: tuple[str, ...], address: str, said: str
) -> None:
    flag = "--gateway-address" if command[0] == "why" else "--controller-address"
    refused = trireme(*command, flag, address)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert said in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_a_wrong_token_and_the_wrong_scheme_are_told_apart(serve: Serve, trireme: Trireme) -> None:
    url = controller(serve, cluster_token="geheim")
    wrong = trireme("status", "--controller-address", url, "--cluster-token", "other")
    assert "does not accept this cluster token" in wrong.stderr
    https = trireme("status", "--controller-address", url.replace("http://", "https://"))
    assert f"it speaks plain HTTP: write {url}" in https.stderr


def test_the_version_is_told(trireme: Trireme) -> None:
    shown = trireme("--version")
    assert (shown.returncode, shown.stdout) == (0, f"trireme {__version__}\n")
