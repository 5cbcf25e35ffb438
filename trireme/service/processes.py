"""Several processes of one tier behind one port, looked after by their parent.

The parent binds the port and serves nothing; the children accept from its socket, so connections
that wait when a child dies are taken by the others. What the parent does about a child:

    ends before any was ready       all stop, with its exit code
    ends with 2, 3 or 4             all stop with it: starting it again would not help
    ends otherwise                  it is started again, after a pause that doubles up to 8 s
    SIGTERM, SIGINT at the parent   every child gets SIGTERM and drains; a second one stops at once

A child whose parent is gone drains too. Over the socket between them (`Sibling` is its other end)
children tell their metrics each second, so that nothing is lost with one that dies, and ask for
those of all, or for what another child keeps.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final

from trireme.service.scrapes import Shown, Totals
from trireme.service.settings import EXIT_BAD_ARGUMENTS, EXIT_MODEL, EXIT_OK, EXIT_PORT

log = logging.getLogger(__name__)

HOPELESS: Final = frozenset({EXIT_BAD_ARGUMENTS, EXIT_MODEL, EXIT_PORT})
FIRST_PAUSE_S: Final = 0.25
MAX_PAUSE_S: Final = 8.0
HEALTHY_S: Final = 10.0
"""A child that has lived so long starts again after the shortest pause."""
TELL_EVERY_S: Final = 1.0
TELL_TIMEOUT_S: Final = 1.0
LINE_LIMIT: Final = 64 * 1024 * 1024


@dataclass(eq=False)
class _Child:
    """One of the processes.

    Attributes:
        ready: whether it has said that it serves.
        shown: its metrics, as it told them last.
        told: set when it has answered the question for them.
    """

    number: int
    process: subprocess.Popen[bytes]
    writer: asyncio.StreamWriter
    started_s: float
    ready: bool = False
    shown: Shown = field(default_factory=list)
    told: asyncio.Event = field(default_factory=asyncio.Event)

    def say(self, **message: Any) -> None:
        if not self.writer.is_closing():
            self.writer.write(json.dumps(message).encode() + b"\n")


class Parent:
    """Starts the children and keeps them running.

    Args:
        command: (file descriptor of the listener, of the socket to the parent) -> program and
            arguments.
        listener: bound and listening.
        count: how many children.
        summed: see `Totals`.
        shared: further file descriptors that they inherit.
    """

    def __init__(
        self,
        command: Callable[[int, int], Sequence[str]],
        listener: socket.socket,
        count: int,
        summed: Collection[str] = (),
        shared: Sequence[int] = (),
    ) -> None:
        self._command = command
        self._listener = listener
        self._count = count
        self._totals = Totals(summed)
        self._shared = tuple(shared)
        self._children: dict[int, _Child] = {}
        self._signals = 0
        self._was_ready = False
        self._looks: dict[int, asyncio.Future[str | None]] = {}
        self._num_looks = 0
        self._ending: asyncio.Future[int] | None = None

    def run(self) -> int:
        """Serve until a signal, or until a child is beyond help; returns the exit code."""
        return asyncio.run(self._run())

    async def _run(self) -> int:
        loop = asyncio.get_running_loop()
        self._ending = loop.create_future()
        for sign in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(sign, self._on_signal)
        tasks = [asyncio.create_task(self._keep(number)) for number in range(self._count)]
        try:
            code = await self._ending
            self._listener.close()
            for child in self._children.values():
                child.process.terminate()
            codes = await asyncio.gather(*tasks)
            return code or max(codes)
        finally:
            for child in self._children.values():
                child.process.kill()

    def _on_signal(self) -> None:
        self._signals += 1
        if self._signals > 1:
            for child in self._children.values():
                child.process.terminate()
        self._end(EXIT_OK)

    def _end(self, code: int) -> None:
        if self._ending is not None and not self._ending.done():
            self._ending.set_result(code)

    # ---- one child, again and again -------------------------------------------------------------

    async def _keep(self, number: int) -> int:
        """Run the child of that number until the end; returns its last exit code."""
        assert self._ending is not None
        pause_s = FIRST_PAUSE_S
        while True:
            began_s = monotonic()
            code = await self._live(number)
            if self._ending.done():
                return code if code > 0 else EXIT_OK
            if code in HOPELESS or not self._was_ready:
                self._end(code if code > 0 else 1)
                return max(code, 0)
            pause_s = FIRST_PAUSE_S if monotonic() - began_s > HEALTHY_S else pause_s
            log.error("process %d ended with code %d; again in %g s", number, code, pause_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._ending), pause_s)
                return EXIT_OK
            pause_s = min(2 * pause_s, MAX_PAUSE_S)

    async def _live(self, number: int) -> int:
        """Start a child and listen to it until it ends; returns its exit code."""
        ours, theirs = socket.socketpair()
        with theirs:
            fds = (self._listener.fileno(), theirs.fileno())
            process = subprocess.Popen(  # noqa: ASYNC220 - it returns as soon as it has forked
                self._command(*fds),
                pass_fds=(*fds, *self._shared),
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a terminal's Ctrl-C is for the parent
            )
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=LINE_LIMIT)
        child = self._children[number] = _Child(number, process, writer, monotonic())
        try:
            with contextlib.suppress(ConnectionError):
                while line := await reader.readline():
                    await self._hear(child, json.loads(line))
            return await asyncio.to_thread(process.wait)
        finally:
            del self._children[number]
            child.told.set()
            self._totals.retire(child.shown)
            writer.close()

    # ---- metrics --------------------------------------------------------------------------------

    async def _hear(self, child: _Child, message: dict[str, Any]) -> None:
        if message.get("ready"):
            child.ready = self._was_ready = True
        if "shown" in message:
            child.shown = message["shown"]
            child.told.set()
        if "scrape" in message:
            asyncio.create_task(self._scrape(child, message["scrape"]))  # noqa: RUF006
        if "find" in message:
            asyncio.create_task(self._find(child, message["find"], message["key"]))  # noqa: RUF006
        look = self._looks.get(message.get("looked", 0))
        if look is not None and not look.done():
            look.set_result(message["found"])

    async def _scrape(self, asker: _Child, number: int) -> None:
        """Ask everybody, and answer when all have answered or the time is over."""
        asked = [child for child in self._children.values() if child.ready]
        for child in asked:
            child.told.clear()
            child.say(tell=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TELL_TIMEOUT_S):
                await asyncio.gather(*(child.told.wait() for child in asked))
        text = self._totals.text(child.shown for child in self._children.values())
        asker.say(answer=number, value=text.decode())

    async def _find(self, asker: _Child, number: int, key: str) -> None:
        """Ask the others, and answer with the first thing that one of them has."""
        looks: dict[int, asyncio.Future[str | None]] = {}
        for child in self._children.values():
            if child.ready and child is not asker:
                self._num_looks += 1
                looks[self._num_looks] = asyncio.get_running_loop().create_future()
                child.say(look=self._num_looks, key=key)
        self._looks.update(looks)
        found, waiting = None, set(looks.values())
        try:
            while waiting and found is None:
                done, waiting = await asyncio.wait(
                    waiting, timeout=TELL_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    break
                found = next((text for one in done if (text := one.result())), None)
        finally:
            for each in looks:
                del self._looks[each]
        asker.say(answer=number, value=found)


class Sibling:
    """A child's line to its parent.

    Args:
        control: the socket that the parent has given.
        shown: the metrics of this process now.
        orphaned: called when the parent is gone.
    """

    def __init__(
        self, control: socket.socket, shown: Callable[[], Shown], orphaned: Callable[[], None]
    ) -> None:
        self._control = control
        self._shown = shown
        self._orphaned = orphaned
        self._writer: asyncio.StreamWriter | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._questions: dict[int, asyncio.Future[Any]] = {}
        self._numbers = 0
        self._kept: Callable[[str], str | None] = lambda _key: None

    def keeps(self, kept: Callable[[str], str | None]) -> None:
        """What `find` of the other processes finds here, by key."""
        self._kept = kept

    async def start(self) -> None:
        """Say that this process serves, and listen from now on."""
        reader, self._writer = await asyncio.open_unix_connection(
            sock=self._control, limit=LINE_LIMIT
        )
        self._say(ready=True)
        self._tasks = [
            asyncio.create_task(self._listen(reader)),
            asyncio.create_task(self._tell_for_ever()),
        ]

    async def stop(self) -> None:
        """Tell the last numbers and hang up."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._writer is not None:
            self._tell()
            with contextlib.suppress(ConnectionError):
                await self._writer.drain()
            self._writer.close()

    async def metrics(self) -> bytes:
        """The metrics of all processes, in Prometheus' text format.

        Raises:
            TimeoutError: the parent does not answer.
        """
        text: str = await self._ask("scrape")
        return text.encode()

    async def find(self, key: str) -> str | None:
        """What another process keeps of that key.

        Raises:
            TimeoutError: the parent does not answer.
        """
        found: str | None = await self._ask("find", key=key)
        return found

    async def _ask(self, question: str, **more: str) -> Any:
        self._numbers += 1
        number = self._numbers
        answer = self._questions[number] = asyncio.get_running_loop().create_future()
        try:
            self._say(**{question: number}, **more)
            async with asyncio.timeout(2 * TELL_TIMEOUT_S):
                return await answer
        finally:
            del self._questions[number]

    def _say(self, **message: Any) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(json.dumps(message).encode() + b"\n")

    def _tell(self) -> None:
        self._say(shown=self._shown())

    async def _tell_for_ever(self) -> None:
        while True:
            self._tell()
            await asyncio.sleep(TELL_EVERY_S)

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                message = json.loads(line)
                if "tell" in message:
                    self._tell()
                if "look" in message:
                    self._say(looked=message["look"], found=self._kept(message["key"]))
                answer = self._questions.get(message.get("answer", 0))
                if answer is not None and not answer.done():
                    answer.set_result(message["value"])
        self._orphaned()


def python(module: str, *arguments: str) -> list[str]:
    """The command of a child that is a module of ours."""
    return [sys.executable, "-m", module, *arguments]
