"""Programs of others as child processes: started apart from ours, watched, ended with all theirs.

It knows no peer; the adapters beside it say what to start and when that is ready.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from benchmarks.stack import StackFailed, free_port
from trireme.cli import leash

START_S = 600.0
"""A first start may compile (vLLM) and read weights from a cold disk, on a busy machine."""
_STOP_S = 20.0
_NOT_THEIRS = ("TRIREME_", "SSL_", "PYTHON", "VIRTUAL_ENV")
"""Variables of our own stack and of our own interpreter."""


class PeerFailed(StackFailed):
    """A peer is not installed as it should be, ended, or never answered; the message says which,
    with the end of its log."""


def interpreter(value: str, module: str) -> Path:
    """The interpreter named by `value`, in which the peer's package is found.

    Raises:
        PeerFailed: there is no such program, or it knows no such package.
    """
    found = shutil.which(Path(value).expanduser())
    if found is None:
        raise PeerFailed(f"there is no interpreter {value}")
    python = Path(found).absolute()  # not resolved: a venv is told by where its link lies
    probe = f"import importlib.util as i, sys; sys.exit(i.find_spec({module!r}) is None)"
    asked = subprocess.run(
        [python, "-P", "-c", probe], env=environment(), capture_output=True, check=False
    )
    if asked.returncode:
        raise PeerFailed(f"{value} has no package {module}; docs/peers.md says how to install it")
    return python


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a peer's process is to see: ours without what is meant for us, and no hub."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_THEIRS)}
    return kept | {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"} | dict(extra or {})


@dataclass(frozen=True, slots=True)
class Server:
    """A process that was started, where it is to listen, and its log."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://127.0.0.1:{self.port}"

    def check(self) -> None:
        """Raise PeerFailed if it has ended."""
        if (code := self.process.poll()) is not None:
            raise PeerFailed(f"{self.name} ended with code {code}:\n{self.tail()}")

    def tail(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-3000:]


class Servers:
    """The processes of one peer, each in a process group of its own. To be closed."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs.absolute()
        self._logs.mkdir(parents=True, exist_ok=True)
        self._started: list[Server] = []

    @property
    def pids(self) -> tuple[int, ...]:
        """Root pids, in the order of starting."""
        return tuple(server.process.pid for server in self._started)

    def start(
        self,
        name: str,
        command: Callable[[int], Sequence[str]],
        extra: Mapping[str, str] | None = None,
    ) -> Server:
        """Start a program on a free port of loopback.

        Args:
            command: port -> program and arguments.
            extra: environment on top of `environment()`.
        """
        port, log = free_port(), self._logs / f"{name}.log"
        on_leash = [sys.executable, "-IS", leash.__file__, str(os.getpid())]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*on_leash, *command(port)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(extra),
                cwd=self._logs,  # not ours: `python -m` finds packages where it stands
                start_new_session=True,
            )
        server = Server(name, port, process, log)
        self._started.append(server)
        return server

    def wait_until(
        self, ready: Callable[[], bool], what: str, *, timeout_s: float = START_S
    ) -> None:
        """Return when `ready`; it may raise OSError as long as it is not.

        Raises:
            PeerFailed: a process ended, or the time is over.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for server in self._started:
                server.check()
            with contextlib.suppress(OSError):
                if ready():
                    return
            time.sleep(0.2)
        tails = "\n".join(f"{server.name}:\n{server.tail()}" for server in self._started)
        raise PeerFailed(f"not {what} after {timeout_s:.0f} s; {tails}")

    def close(self) -> None:
        """End every process and whatever it started, the last one first."""
        for server in reversed(self._started):
            _signal_group(server.process, signal.SIGCONT)  # it may have been paused
            server.process.terminate()
        deadline = time.monotonic() + _STOP_S
        for server in reversed(self._started):
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.process.wait(max(0.0, deadline - time.monotonic()))
            _signal_group(server.process, signal.SIGKILL)
            server.process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


@contextlib.contextmanager
def servers(logs: Path) -> Iterator[Servers]:
    """A `Servers` that is closed at the end."""
    made = Servers(logs)
    try:
        yield made
    finally:
        made.close()


def get_json(url: str, *, timeout_s: float = 10.0) -> object:
    """The JSON that a GET gives.

    Raises:
        OSError: no answer, an error status, or no JSON.
    """
    return _json(urllib.request.Request(url), timeout_s)


def post_json(url: str, body: object, *, timeout_s: float = 60.0) -> object:
    """The JSON that a POST gives; errors as `get_json`."""
    headers = {"Content-Type": "application/json"}
    return _json(urllib.request.Request(url, orjson.dumps(body), headers), timeout_s)


def _json(request: urllib.request.Request, timeout_s: float) -> object:
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            return orjson.loads(answer.read())
    except orjson.JSONDecodeError as failure:
        raise OSError(f"{request.full_url} answers no JSON: {failure}") from failure


def chats(base_url: str, model: str, *, api_key: str = "") -> bool:
    """Whether a streamed chat gets through to its end.

    Raises:
        OSError: the server does not answer yet.
    """
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "river stone"}],
        "max_tokens": 2,
        "temperature": 0.0,
        "stream": True,
    }
    headers = {"Content-Type": "application/json", "Connection": "close"}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    url = f"{base_url}/v1/chat/completions"
    request = urllib.request.Request(url, orjson.dumps(body), headers)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return b"data: [DONE]" in answer.read()
    except urllib.error.HTTPError:
        return False
