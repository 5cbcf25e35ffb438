"""What is started to be measured, and what is left out."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks.systems import Target
from benchmarks.targets import Started, parse_peers, start_peers


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two peers, of which one does not start; gives what was stopped."""
    stopped: list[str] = []

    @contextmanager
    def good(value: str, model_folder: Path, logs: Path) -> Iterator[Target]:
        yield Target("good", f"http://{value}", f"{model_folder}, {logs}")
        stopped.append("good")

    @contextmanager
    def bad(value: str, model_folder: Path, logs: Path) -> Iterator[Target]:
        raise LookupError(f"no module in {value}")
        yield

    module = ModuleType("benchmarks.peers")
    module.ENGINE_PEERS = {"good": good, "bad": bad}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "benchmarks.peers", module)
    return stopped


def test_a_peer_that_does_not_start_is_left_out_with_its_reason(peers: list[str]) -> None:
    started, said = Started(), []
    with ExitStack() as stack:
        wanted = [("bad", "a/python"), ("good", "here")]
        start_peers(wanted, Path("m"), Path("logs"), stack, started, said.append)
        assert started.targets == [Target("good", "http://here", f"m, {Path('logs/good')}")]
        assert started.left_out == {"bad": "LookupError: no module in a/python"}
        assert peers == []
    assert peers == ["good"]
    assert "bad does not start and is left out: no module in a/python" in said


@pytest.mark.parametrize("text", ["good", "good=", "other=x"])
def test_a_peer_is_a_known_name_and_a_value(peers: list[str], text: str) -> None:
    with pytest.raises(ValueError, match=r"NAME=|no peer 'other'; there are good, bad"):
        parse_peers([text])


def test_a_value_may_have_an_equals_sign(peers: list[str]) -> None:
    assert parse_peers(["good=http://h/?a=b"]) == [("good", "http://h/?a=b")]
