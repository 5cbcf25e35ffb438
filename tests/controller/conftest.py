"""A controller on a real socket, in a thread of the test's process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp

from controller.app import create_app
from controller.config import ControllerSettings
from tests.controller.serving import Farm

Serve = Callable[[ASGIApp], str]
Start = Callable[..., httpx.Client]


@pytest.fixture(scope="session")
def farm() -> Iterator[Farm]:
    """Where all apps of the session are served."""
    farm = Farm()
    yield farm
    farm.close()


@pytest.fixture
def serve(farm: Farm) -> Iterator[Serve]:
    """Serve an app on a free port until the test ends; gives its base URL."""
    with contextlib.ExitStack() as stack:
        yield lambda app: stack.enter_context(farm.serving(app))


@pytest.fixture
def start(serve: Serve) -> Iterator[Start]:
    """Start a controller with these settings; gives a client of it."""
    with contextlib.ExitStack() as stack:

        def begin(**fields: Any) -> httpx.Client:
            url = serve(create_app(ControllerSettings(**fields)))
            client = httpx.Client(base_url=url, timeout=20, trust_env=False)
            return stack.enter_context(client)

        yield begin
