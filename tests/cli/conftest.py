"""Apps on real sockets, and the `trireme` command as a process."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvicorn
from starlette.types import ASGIApp

ROOT = Path(__file__).parents[2]


@pytest.fixture
def serve() -> Iterator[Callable[[ASGIApp], str]]:
    """Serve an app on a free port until the test ends; gives its base URL."""
    with contextlib.ExitStack() as stack:
        yield lambda app: stack.enter_context(_served(app))


@contextlib.contextmanager
def _served(app: ASGIApp) -> Iterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


@pytest.fixture
def command_environment() -> dict[str, str]:
    """Environment in which `python -m trireme.cli` finds this checkout and no one's settings."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("TRIREME_", "SSL_", "OPENAI_"))
    }
    return kept | {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "NO_COLOR": "1"}


@pytest.fixture
def trireme(
    command_environment: dict[str, str],
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `trireme …` to its end."""

    def run(*args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "trireme.cli", *args],
            env=command_environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run
