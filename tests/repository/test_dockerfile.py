"""The Dockerfile's promises that a linter does not check."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "Dockerfile").read_text()


def stage(name: str) -> str:
    """The instructions of one build stage."""
    parts = re.split(r"^FROM ", TEXT, flags=re.MULTILINE)[1:]
    named = {part.splitlines()[0].rpartition(" AS ")[2]: part for part in parts}
    return named[name]


@pytest.mark.parametrize("target", ["edge", "worker"])
def test_an_image_runs_as_a_numbered_user_without_rights(target: str) -> None:
    users = re.findall(r"^USER (\S+)$", stage(target), flags=re.MULTILINE)
    assert users == ["10001:10001"]


@pytest.mark.parametrize("target", ["edge", "worker"])
def test_an_image_has_a_healthcheck(target: str) -> None:
    assert "HEALTHCHECK" in stage(target)


def test_the_edge_installs_no_torch() -> None:
    assert "torch" not in stage("build-edge")
    assert "[worker" not in stage("build-edge")
    assert "build-worker" not in stage("edge")


@pytest.mark.parametrize("target", ["build-edge", "build-worker"])
def test_an_image_has_the_tested_versions(target: str) -> None:
    assert "-c constraints.txt" in stage(target)


def test_what_the_build_needs_is_let_through() -> None:
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    assert allowed[0] == "*"
    packages = ("protocol", "controller", "worker", "gateway", "trireme", "benchmarks")
    for name in (*packages, "constraints.txt"):
        assert f"!{name}" in allowed
