"""What a program loads before it does anything: the edge must start without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"torch", "transformers", "accelerate", "numpy"}


def run(root: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *args], cwd=root, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("tier", ["controller", "gateway", "worker"])
def test_help_of_a_tier_loads_no_torch(tier: str, root: Path) -> None:
    done = run(root, "-X", "importtime", "-m", tier, "--help")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "--controller-address" in done.stdout or tier == "controller"
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "pydantic" in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize("module", ["controller.app", "gateway.app", "trireme.cli.main"])
def test_the_edge_loads_no_torch(module: str, root: Path) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    done = run(root, "-c", code)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not set(done.stdout.split()) & HEAVY


@pytest.mark.parametrize("package", ["protocol", "controller", "gateway", "worker", "trireme"])
def test_a_package_is_typed(package: str, root: Path) -> None:
    assert (root / package).is_dir()
    assert (root / "protocol" / "py.typed").is_file()
