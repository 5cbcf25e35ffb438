"""The Makefile and .ci/run: what a person and what continuous integration start."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def make(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    # an outer make's flags, such as the jobserver of `make test`, do not belong to this one
    outer = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES", "ARGS", "PYTHON", "VENV"}
    kept = {name: value for name, value in os.environ.items() if name not in outer}
    return subprocess.run(
        ["make", *args],
        cwd=ROOT,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_names_every_target() -> None:
    phony = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert phony is not None
    shown = set(re.findall(r"^  make (\w+)", make("help").stdout, flags=re.MULTILINE))
    assert shown == set(phony[1].split())


def test_an_old_python_is_refused_in_words(tmp_path: Path) -> None:
    old = tmp_path / "python-old"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo "Python 3.9.1" || exit 1\n')
    old.chmod(0o755)
    done = make("up", f"PYTHON={old}", f"VENV={tmp_path}/venv")
    assert done.returncode != 0
    assert "needs Python 3.11 or newer" in done.stderr
    assert "Python 3.9.1" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_a_missing_python_is_named(tmp_path: Path) -> None:
    done = make("up", "PYTHON=no-such-python", f"VENV={tmp_path}/venv")
    assert done.returncode != 0
    assert "There is no 'no-such-python'" in done.stderr


def test_torch_is_installed_first_and_pinned(tmp_path: Path) -> None:
    done = make("--dry-run", "up", f"VENV={tmp_path}/venv", "TORCH_INDEX=the-index")
    installs = [line for line in done.stdout.splitlines() if " pip install " in line]
    assert re.search(r"--index-url the-index torch==\d", installs[0])
    assert all("-c constraints.txt" in line for line in installs)
    assert "dev" not in installs[-1]


@pytest.mark.parametrize("target", ["check", "test"])
def test_continuous_integration_runs(target: str) -> None:
    text = (ROOT / ".ci/run").read_text()
    assert "set -euo pipefail" in text
    assert f"\nmake {target}\n" in text
    assert os.access(ROOT / ".ci/run", os.X_OK)
