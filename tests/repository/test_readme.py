"""The README's examples, run as a reader runs them, against a stack that `trireme up` makes."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text()
BLOCK = re.compile(
    r"<!-- run by tests/repository/test_readme\.py -->\n```(\w+)\n(.*?)```", re.DOTALL
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def port(children: Any, free_ports: Callable[[int], list[int]]) -> int:
    """The gateway's port of a stack with the demo model."""
    gateway, controller, worker = free_ports(3)
    ports = {"--port": gateway, "--controller-port": controller, "--worker-port": worker}
    flags = [f"{flag}={port}" for flag, port in ports.items()]
    children.start([sys.executable, "-m", "trireme.cli", "up", *flags])
    children.wait(lambda: ready(gateway), timeout_s=120)
    return gateway


def ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2):
            return True
    except OSError:
        return False


def examples(language: str, port: int) -> list[str]:
    """The blocks that are marked to be run, with the port of this test's stack."""
    return [
        code.replace("localhost:8000", f"127.0.0.1:{port}")
        for kind, code in BLOCK.findall(TEXT)
        if kind == language
    ]


def run(command: list[str]) -> str:
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_curl_example_gets_an_answer(port: int) -> None:
    (code,) = examples("sh", port)
    answer = json.loads(run(["bash", "-c", code]))
    assert answer["object"] == "chat.completion", answer
    assert answer["choices"][0]["message"]["content"].strip()
    assert answer["usage"]["completion_tokens"] > 0


def test_the_python_example_prints_an_answer(port: int) -> None:
    (code,) = examples("python", port)
    assert "--model-path" in run([sys.executable, "-c", code])


def test_the_two_commands_come_first() -> None:
    blocks = re.findall(r"```sh\n(.*?)```", TEXT, flags=re.DOTALL)
    assert [block.strip() for block in blocks[:2]] == ["make up", "make test"]


def test_an_interrupt_stops_all_of_it(children: Any, port: int) -> None:
    """Runs last: it stops the stack of this module."""
    (up,) = children.started
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(30) == 0, up.output
    assert not ready(port)
