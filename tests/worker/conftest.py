"""A worker with the simulated engine, served on a real socket inside the test's event loop."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp
import pytest
import uvicorn
from blockbuster import blockbuster_ctx
from fastapi import FastAPI

from protocol.generation import Event, decode_event
from trireme.service.http_head import BoundedHttp
from trireme.service.server import ExitRequest
from worker.app import create_app
from worker.config import Settings
from worker.runtime import Runtime


async def until(condition: Callable[[], object], timeout_s: float = 5.0) -> None:
    """Returns when `condition` holds; fails after the timeout."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 -- any condition, not an event's
            await asyncio.sleep(0.002)


@asynccontextmanager
async def served(app: FastAPI, listener: socket.socket) -> AsyncIterator[None]:
    """Serve `app` on `listener` until the block ends."""
    config = uvicorn.Config(app, http=BoundedHttp, log_config=None, lifespan="on", ws="none")
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    task = asyncio.create_task(server._serve(sockets=[listener]))
    try:
        await until(lambda: server.started)
        yield
    finally:
        server.should_exit = True
        await task


def listen() -> socket.socket:
    """A listening socket on a free port of the loopback interface."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    return listener


@dataclass
class Worker:
    """A running worker, its address, and a client."""

    url: str
    runtime: Runtime
    http: aiohttp.ClientSession
    exit_request: ExitRequest
    drain: Callable[[], Any]

    async def post(self, path: str, body: Any) -> tuple[int, Any]:
        """Status and JSON of an answer."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.http.post(self.url + path, data=data) as response:
            return response.status, await response.json()

    async def events(self, **fields: Any) -> list[Event]:
        """All events of one generation that is admitted."""
        body = {"request_id": "r", "model": "sim", **fields}
        async with self.http.post(self.url + "/native/generate", json=body) as response:
            assert response.status == 200, await response.text()
            return [decode_event(line) async for line in response.content]

    async def until(self, condition: Callable[[], object], timeout_s: float = 5.0) -> None:
        """Returns when `condition` holds."""
        await until(condition, timeout_s)

    async def until_ready(self) -> None:
        """Returns when requests are served."""
        await until(lambda: self.runtime.not_ready() is None)

    async def until_running(self) -> None:
        """Returns when the engine runs a sequence."""
        await until(lambda: self.runtime.load().running)

    async def until_idle(self, timeout_s: float) -> float:
        """Seconds until nothing runs or waits; fails after the timeout."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            load = self.runtime.load()
            if load.running == load.waiting == 0:
                return loop.time() - began
            assert loop.time() - began < timeout_s, load
            await asyncio.sleep(0.002)


class StartWorker(Protocol):
    async def __call__(self, **settings: Any) -> Worker: ...


@pytest.fixture
async def start_worker() -> AsyncIterator[StartWorker]:
    """Starts workers with the given settings; they are stopped after the test.

    What blocks the event loop fails the test.
    """
    with blockbuster_ctx():
        async with AsyncExitStack() as stack:

            async def start(*, ready: bool = True, **settings: Any) -> Worker:
                fields = {"engine": "sim", "no_register": True, "sim_tokens": 8, **settings}
                listener = listen()
                url = f"http://127.0.0.1:{listener.getsockname()[1]}"
                exit_request = ExitRequest()
                made = create_app(Settings(**fields), address=url, exit_request=exit_request)
                await stack.enter_async_context(served(made.app, listener))
                http = await stack.enter_async_context(aiohttp.ClientSession())
                if ready:
                    await until(lambda: made.runtime.not_ready() is None)
                return Worker(url, made.runtime, http, exit_request, made.drain)

            yield start


@pytest.fixture
async def worker(start_worker: StartWorker) -> Worker:
    """A worker that answers at once."""
    return await start_worker()
