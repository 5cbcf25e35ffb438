"""What holds for every test: no settings from outside, no model hub, GPU tests only with a GPU."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"

settings.register_profile("untimed", deadline=None)  # how long an example takes is no fault
settings.load_profile("untimed")

STATE = tempfile.TemporaryDirectory(prefix="trireme-state-")
os.environ["XDG_STATE_HOME"] = STATE.name  # a gateway's usage ledger must not land in a home

OUTSIDE = (
    "TRIREME_CONTROLLER_",
    "TRIREME_WORKER_",
    "TRIREME_GATEWAY_",
    "TRIREME_CLUSTER_TOKEN",
    "TRIREME_API_KEY",
    "SSL_KEYFILE",
    "SSL_CERTFILE",
    "OPENAI_",
)


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables that configure a tier or a client on this machine must not reach a test."""
    for name in list(os.environ):
        if name.startswith(OUTSIDE):
            monkeypatch.delenv(name)


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Take memory addresses out of parametrised names: parallel processes compare the names."""
    for marker in metafunc.definition.iter_markers("parametrize"):
        names = marker.kwargs.get("ids")
        if callable(names):
            marker.kwargs["ids"] = partial(_without_address, names)


def _without_address(names: Callable[[Any], object], value: Any) -> object:
    name = names(value)
    return re.sub(r"(?<= at 0x)[0-9a-f]+", "", name) if isinstance(name, str) else name


def pytest_unconfigure() -> None:
    STATE.cleanup()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
    return (yield)
