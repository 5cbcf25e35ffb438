"""A worker whose engine is two processes: it serves, and survives the death of one of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.stack.processes import Tier


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Tier]:
    made = Tier(
        "worker",
        tmp_path / "worker.log",
        "--no-register",
        *("--device", "cpu", "--dtype", "float32", "--tensor-parallel-size", "2"),
    )
    try:
        yield made
    finally:
        if made.process.poll() is None:
            made.kill()


def ask(worker: Tier) -> str:
    body = {"model": "trireme-demo", "prompt": "The gateway", "temperature": 0.0, "echo": False}
    answer = httpx.post(f"{worker.url}/worker_generate", json=body, timeout=60).json()
    assert answer["error_code"] == 0, answer
    return str(answer["text"])


def engine_processes(worker: Tier) -> tuple[psutil.Process, psutil.Process]:
    """Rank 0, which is the engine's process, and rank 1."""
    [engine] = psutil.Process(worker.process.pid).children()
    [rank] = engine.children()
    return engine, rank


def test_the_death_of_a_rank_restarts_the_engine(worker: Tier) -> None:
    worker.wait_ready()
    text = ask(worker)
    assert text
    engine, rank = engine_processes(worker)
    rank.kill()
    engine.wait(10)
    deadline = time.monotonic() + 90
    while httpx.get(f"{worker.url}/readyz", timeout=5).status_code == 200:
        assert time.monotonic() < deadline
    worker.wait_ready()
    assert ask(worker) == text
    again = engine_processes(worker)
    assert worker.stop() == 0
    for process in again:
        process.wait(10)
