"""A controller on a real socket, in a thread of the test's process."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.types import ASGIApp

from controller.app import create_app
from controller.config import ControllerSettings

Serve = Callable[[ASGIApp], str]
Start = Callable[..., httpx.Client]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serve an app on a free port until the test ends; gives its base URL."""
    with contextlib.ExitStack() as stack:
        yield lambda app: stack.enter_context(_served(app))


@contextlib.contextmanager
def _served(app: ASGIApp) -> Iterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(app, log_config=None, lifespan="auto", timeout_graceful_shutdown=2)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


@pytest.fixture
def start(serve: Serve) -> Iterator[Start]:
    """Start a controller with these settings; gives a client of it."""
    with contextlib.ExitStack() as stack:

        def begin(**fields: Any) -> httpx.Client:
            url = serve(create_app(ControllerSettings(**fields)))
            client = httpx.Client(base_url=url, timeout=20, trust_env=False)
            return stack.enter_context(client)

        yield begin
