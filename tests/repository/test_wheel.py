"""What a wheel holds: all packages with their data, and nothing else."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

PACKAGES = {"protocol", "controller", "worker", "gateway", "trireme", "benchmarks"}


@pytest.fixture(scope="module")
def wheel(root: Path) -> set[str]:
    return {
        Path(file.distribution_path).as_posix()
        for file in WheelBuilder(str(root)).recurse_included_files()
    }


def test_it_holds_the_packages_alone(wheel: set[str]) -> None:
    assert {path.partition("/")[0] for path in wheel} == PACKAGES


@pytest.mark.parametrize(
    "path",
    [
        "controller/__main__.py",
        "gateway/__main__.py",
        "worker/__main__.py",
        "trireme/cli/main.py",
        "benchmarks/__main__.py",
        "protocol/conversations.json",
        "worker/demo/model/config.json",
        "worker/demo/model/model.safetensors",
        "worker/demo/model/tokenizer.json",
    ],
)
def test_it_holds(path: str, wheel: set[str]) -> None:
    assert path in wheel


def test_the_version_is_written_once(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert "version" not in project
    assert (root / "protocol" / "__init__.py").read_text().count("__version__ =") == 1


def test_every_dependency_is_pinned(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    wanted = [*project["dependencies"], *(one for extra in extras for one in extra)]
    lines = (root / "constraints.txt").read_text().splitlines()
    pinned = {normal(line.partition("==")[0]) for line in lines if "==" in line}
    names = {normal(text) for text in wanted}
    assert names <= pinned, names - pinned


def test_the_pinned_versions_name_no_build(root: Path) -> None:
    assert "+" not in (root / "constraints.txt").read_text()


def normal(requirement: str) -> str:
    """The name of a requirement as indexes compare it."""
    name = requirement
    for sign in "[<>=!~; ":
        name = name.partition(sign)[0]
    return name.strip().lower().replace("_", "-").replace(".", "-")
