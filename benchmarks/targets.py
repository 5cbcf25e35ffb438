"""Starts what is to be measured: our own stack, peers, or nothing when a server runs already."""

from __future__ import annotations

import contextlib
import importlib
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import orjson

from benchmarks.stack import own_stack
from benchmarks.systems import Target

Peer = Callable[[str, Path, Path], AbstractContextManager[Target]]
"""(value of --peer, model folder, folder for logs) -> a running server."""


@dataclass(slots=True)
class Started:
    """What runs, and the peers that do not (name -> reason)."""

    targets: list[Target] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


def peers() -> dict[str, Peer]:
    """The peers that can be started, by name."""
    return cast(dict[str, Peer], importlib.import_module("benchmarks.peers").ENGINE_PEERS)


def parse_peers(values: Sequence[str]) -> list[tuple[str, str]]:
    """`name=value` each -> (name, value).

    Raises:
        ValueError: for another form, or a name that is no peer's.
    """
    found = []
    for text in values:
        name, sign, value = text.partition("=")
        if not sign or not value:
            raise ValueError(f"{text!r} is not of the form NAME=PATH-OR-URL")
        if name not in peers():
            raise ValueError(f"no peer {name!r}; there are {', '.join(peers())}")
        found.append((name, value))
    return found


def first_model(base_url: str, api_key: str = "") -> str:
    """The name of the first model that a server lists.

    Raises:
        OSError: it does not answer, or not with a list of models.
    """
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    request = urllib.request.Request(f"{base_url}/v1/models", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return str(orjson.loads(answer.read())["data"][0]["id"])
    except (urllib.error.URLError, ValueError, LookupError, TypeError) as failure:
        raise OSError(f"{base_url} does not list its models: {failure}") from failure


def make_model_folder(size: str, parent: Path) -> Path:
    """The folder of the model `bench-SIZE`, made in a process of its own, so that this one stays
    without torch and its threads.

    Raises:
        RuntimeError: it could not be made; the message holds what was written.
    """
    folder = parent / f"bench-{size}"
    if not folder.is_dir():
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.make_model", size, str(parent)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"the model {folder} could not be made:\n{done.stderr[-2000:]}")
    return folder


@contextlib.contextmanager
def own_targets(
    worker_args: Sequence[str], logs: Path, *, gateway: bool = True, direct: bool = True
) -> Iterator[list[Target]]:
    """Our own stack as up to two systems: through its gateway, and straight to its worker.

    Raises:
        StackFailed: it did not start.
    """
    with own_stack(worker_args, logs) as stack:
        model = first_model(stack.gateway_url)
        pids = tuple(stack.pids.values())
        found = []
        if gateway:
            found.append(Target("trireme", stack.gateway_url, model, pids))
        if direct:
            found.append(Target("trireme direct", stack.worker_url, model, pids, wire="native"))
        yield found


def start_peers(
    wanted: Sequence[tuple[str, str]],
    model_folder: Path,
    logs: Path,
    stack: ExitStack,
    started: Started,
    say: Callable[[str], object],
) -> None:
    """Start each peer, to be stopped with `stack`; one that does not start is left out."""
    for name, value in wanted:
        say(f"starting {name}")
        try:
            peer = peers()[name](value, model_folder, logs / name)
            started.targets.append(stack.enter_context(peer))
        except Exception as failure:  # whatever a foreign program's start may raise
            started.left_out[name] = f"{type(failure).__name__}: {failure}"
            say(f"{name} does not start and is left out: {failure}")
