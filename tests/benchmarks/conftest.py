"""What the benchmark's tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's folder."""
    return ROOT


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """A small real checkpoint."""
    return ROOT / "worker" / "demo" / "model"
