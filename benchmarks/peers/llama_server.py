"""llama.cpp's own server: one that runs already, or one that is started on a converted model."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from benchmarks.peers.process import PeerFailed, chats, get_json, servers
from benchmarks.systems import Target

SLOTS = 32
CONTEXT = 4096
"""Tokens for each slot; all slots share one pool of cells."""


@contextlib.contextmanager
def llamacpp(value: str, model: Path, logs: Path) -> Iterator[Target]:
    """A server at a URL, or the program `llama-server`, beside which lies MODEL.gguf in bfloat16.

    Raises:
        PeerFailed: it is not there, does not start, or has no such model.
    """
    if value.startswith(("http://", "https://")):
        yield running_server(value.rstrip("/"))
        return
    program = shutil.which(Path(value).expanduser())
    if program is None:
        raise PeerFailed(f"there is no program {value}")
    weights = Path(program).absolute().with_name(f"{model.name}.gguf")
    if not weights.is_file():
        raise PeerFailed(
            f"there is no {weights}; docs/peers.md says how benchmarks/peers/to_gguf.py makes it"
        )
    with servers(logs) as running:
        server = running.start(
            "llama-server", lambda port: command(Path(program), weights, model.name, cores(), port)
        )
        running.wait_until(lambda: chats(server.url, model.name), "answering")
        yield Target("llama.cpp", server.url, model.name, running.pids)


def running_server(url: str) -> Target:
    """The one that somebody else has started; its pids are not known.

    Raises:
        PeerFailed: it does not answer, or lists no model.
    """
    try:
        listed = get_json(f"{url}/v1/models")
        assert isinstance(listed, dict)
        name = str(listed["data"][0]["id"])
        if not chats(url, name):
            raise PeerFailed(f"{url} lists {name}, but a chat with it fails")
    except (OSError, AssertionError, LookupError) as failure:
        raise PeerFailed(f"{url} is no server with a model: {failure}") from failure
    return Target("llama.cpp", url, name)


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def command(program: Path, weights: Path, name: str, threads: int, port: int) -> list[str]:
    """One slot for each client of the largest level; continuous batching and flash attention are
    its defaults."""
    return [
        *(str(program), "--offline", "--host", "127.0.0.1", "--port", str(port)),
        *("--model", str(weights), "--alias", name, "--threads", str(threads)),
        *("--parallel", str(SLOTS), "--ctx-size", str(SLOTS * CONTEXT), "--kv-unified"),
    ]
