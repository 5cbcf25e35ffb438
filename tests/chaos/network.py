"""A network between the gateways and one worker that can be cut without a reset.

Where namespaces are allowed, the worker has one of its own, and a cut is a route that swallows
packets. Elsewhere a proxy stands before the worker, and stops to read, to write and to accept.
Heartbeats still arrive in both.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
from collections.abc import Coroutine
from typing import Any, Protocol

from tests.stack.processes import free_port


class Network(Protocol):
    """How to start the worker and the controllers, and how to cut between gateway and worker.

    Attributes:
        kind: what it is made of, for people.
        prefix: the command that starts the worker there.
    """

    kind: str
    prefix: tuple[str, ...]
    worker_url: str
    worker_args: tuple[str, ...]
    controller_args: tuple[str, ...]

    def controller_url(self, port: int) -> str:
        """Where the worker reaches a controller."""
        ...

    async def start(self) -> None:
        """Make it; again is nothing."""
        ...

    def cut(self) -> None: ...

    def mend(self) -> None: ...

    async def close(self) -> None: ...


def network_between(worker_port: int) -> Network:
    """A namespace where this user may make one, else a proxy."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return Namespace(worker_port)
    return Proxy(worker_port)


class Namespace:
    """Two addresses on this side, so that the way to the gateways can go while the one to the
    controllers stays."""

    kind = "network namespace"

    def __init__(self, worker_port: int) -> None:
        self._name = f"chaos{os.getpid()}"
        third = os.getpid() % 250
        self._ours, self._controllers = f"10.213.{third}.1", f"10.213.{third}.3"
        worker = f"10.213.{third}.2"
        self.prefix = ("ip", "netns", "exec", self._name)
        self.worker_url = f"http://{worker}:{worker_port}"
        self.worker_args = ("--host", worker, "--allow-unauthenticated")
        self.controller_args = ("--host", "0.0.0.0", "--allow-unauthenticated")
        self._cut = False
        near, far = f"{self._name}a", f"{self._name}b"
        _ip("netns", "add", self._name)
        try:
            _ip("link", "add", near, "type", "veth", "peer", "name", far)
            _ip("link", "set", far, "netns", self._name)
            _ip("address", "add", f"{self._ours}/24", "dev", near)
            _ip("address", "add", f"{self._controllers}/24", "dev", near)
            _ip("link", "set", near, "up")
            self._within("address", "add", f"{worker}/24", "dev", far)
            self._within("link", "set", far, "up")
            self._within("link", "set", "lo", "up")
        except (OSError, subprocess.CalledProcessError):
            _ip("netns", "delete", self._name)
            raise

    def controller_url(self, port: int) -> str:
        return f"http://{self._controllers}:{port}"

    async def start(self) -> None:
        """It is there from the beginning."""

    def cut(self) -> None:
        """What the worker sends to the gateways is swallowed, acknowledgements too."""
        self._within("route", "add", "blackhole", f"{self._ours}/32")
        self._cut = True

    def mend(self) -> None:
        if self._cut:
            self._within("route", "delete", "blackhole", f"{self._ours}/32")
            self._cut = False

    async def close(self) -> None:
        _ip("netns", "delete", self._name)

    def _within(self, *args: str) -> None:
        _ip("-n", self._name, *args)


def _ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True, capture_output=True)


class Proxy:
    """Bytes both ways; after a cut nothing moves, and new connections are not answered."""

    kind = "proxy that drops"

    def __init__(self, worker_port: int) -> None:
        self.prefix: tuple[str, ...] = ()
        self._port, self._worker_port = free_port(), worker_port
        self.worker_url = f"http://127.0.0.1:{self._port}"
        self.worker_args = ("--worker-address", self.worker_url)
        self.controller_args: tuple[str, ...] = ()
        self._flows = asyncio.Event()
        self._flows.set()
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._fillers: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def controller_url(self, port: int) -> str:
        return f"http://127.0.0.1:{port}"

    async def start(self) -> None:
        """Listen."""
        if self._listener is None:
            self._listener = socket.socket()
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.bind(("127.0.0.1", self._port))
            self._listener.listen(1)
            self._listener.setblocking(False)
            self._accepting = self._keep(self._accept(self._listener))

    def cut(self) -> None:
        """A full backlog makes the kernel drop what tries to connect."""
        self._flows.clear()
        if self._accepting is not None:
            self._accepting.cancel()
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", self._port))
            self._fillers.append(filler)

    def mend(self) -> None:
        if self._flows.is_set():
            return
        for filler in self._fillers:
            filler.close()
        self._fillers.clear()
        self._flows.set()
        if self._listener is not None and self._accepting is not None:
            self._accepting = self._keep(self._accept(self._listener))

    async def close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for filler in self._fillers:
            filler.close()
        if self._listener is not None:
            self._listener.close()

    def _keep(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(listener)
            self._keep(self._carry(client))

    async def _carry(self, client: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=client)
        writers, pumps = [writer], []
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._worker_port)
            writers.append(far_writer)
            ways = (self._pump(reader, far_writer), self._pump(far_reader, writer))
            pumps = [asyncio.create_task(way) for way in ways]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            await self._flows.wait()  # the end of a connection is dropped too
        except OSError:
            pass  # no worker is there: the end of this connection says so
        finally:
            for pump in pumps:
                pump.cancel()
            for one in writers:
                one.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self._flows.wait()
                writer.write(data)
                await writer.drain()
