"""SGLang's router, in Rust, in front of a server that speaks OpenAI's API."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from benchmarks.peers.process import chats, interpreter, servers
from benchmarks.stack import free_port
from benchmarks.systems import Target


@contextlib.contextmanager
def sglang_router(value: str, logs: Path, backend_url: str, model: str) -> Iterator[Target]:
    """The router with its own defaults: cache-aware routing, retries, circuit breaker.

    Raises:
        PeerFailed: it does not start, or the backend does not answer through it.
    """
    python = interpreter(value, "sglang_router")
    with servers(logs) as running:
        server = running.start(
            "sglang-router", lambda port: command(python, backend_url, port, free_port())
        )
        running.wait_until(lambda: chats(server.url, model), "answering", timeout_s=120)
        yield Target("sglang-router", server.url, model, running.pids)


def command(python: Path, backend_url: str, port: int, metrics_port: int) -> list[str]:
    """The metrics' port is not left to its default, which another router may have."""
    return [
        *(str(python), "-P", "-m", "sglang_router.launch_router"),
        *("--host", "127.0.0.1", "--port", str(port), "--worker-urls", backend_url),
        *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics_port)),
        *("--log-level", "warn"),
    ]
