"""Whoever starts gateways for a test or a measurement keeps them off the user's usage ledger."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.gateway_systems import children, wait_for
from benchmarks.stack import own_stack
from tests.stack.processes import Tier, free_port


@contextlib.contextmanager
def _of_tests_and_the_fault_suite(logs: Path) -> Iterator[None]:
    gateway = Tier("gateway", logs / "gateway.log")
    try:
        wait_for(f"{gateway.url}/healthz", [gateway.process])
        yield
    finally:
        gateway.kill()


@contextlib.contextmanager
def _of_the_benchmark_of_gateways(logs: Path) -> Iterator[None]:
    port = str(free_port())
    with children(logs) as start:
        process = start("gateway", sys.executable, "-m", "gateway", "--port", port)
        wait_for(f"http://127.0.0.1:{port}/healthz", [process])
        yield


@contextlib.contextmanager
def _of_the_benchmarks_of_stacks(logs: Path) -> Iterator[None]:
    with own_stack(["--engine", "sim"], logs):
        yield


@pytest.mark.parametrize(
    "launcher",
    [
        _of_tests_and_the_fault_suite,
        _of_the_benchmark_of_gateways,
        _of_the_benchmarks_of_stacks,
    ],
)
def test_a_gateway_leaves_the_users_ledger_alone(
    launcher: Callable[[Path], contextlib.AbstractContextManager[None]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home, logs = tmp_path / "home", tmp_path / "logs"
    home.mkdir()
    logs.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_STATE_HOME")
    with launcher(logs):
        assert (logs / "trireme" / "usage.db").is_file()
        assert not (home / ".local").exists()
