"""A proxy between workers and a controller that loses, doubles and reorders heartbeats."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter

import aiohttp
from aiohttp import web

from tests.stack.processes import free_port

LATE_S = 1.5
"""A copy comes so late that a newer record came before it."""
PATTERN = ("pass", "copy", "lose", "copy", "lose", "lose")


class HeartbeatProxy:
    """Passes everything on, until it is `harmful`.

    Attributes:
        did: how often it lost and copied records.
    """

    def __init__(self, target: str) -> None:
        self.harmful = False
        self.did: Counter[str] = Counter()
        self._target = target
        self._runner: web.AppRunner | None = None
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._http: aiohttp.ClientSession | None = None
        self._turns: dict[str, itertools.cycle[str]] = {}
        self._late: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen; again is nothing."""
        if self._runner is not None:
            return
        self._http = aiohttp.ClientSession()
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._pass)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()

    async def close(self) -> None:
        for task in self._late:
            task.cancel()
        if self._runner is not None and self._http is not None:
            await self._http.close()
            await self._runner.cleanup()

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        harm = "pass"
        if self.harmful and request.method == "PUT":
            turns = self._turns.setdefault(request.path, itertools.cycle(PATTERN))
            harm = next(turns)
        self.did[harm] += 1
        if harm == "lose":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if harm == "copy":
            task = asyncio.create_task(self._again(request, body))
            self._late.add(task)
            task.add_done_callback(self._late.discard)
        try:
            status, answer = await self._send(request, body)
        except aiohttp.ClientError:
            return web.Response(status=502)
        return web.Response(status=status, body=answer, content_type="application/json")

    async def _again(self, request: web.Request, body: bytes) -> None:
        await asyncio.sleep(LATE_S)
        with contextlib.suppress(aiohttp.ClientError):
            await self._send(request, body)

    async def _send(self, request: web.Request, body: bytes) -> tuple[int, bytes]:
        assert self._http is not None
        headers = {"Content-Type": request.content_type}
        url = self._target + request.path_qs
        async with self._http.request(request.method, url, data=body, headers=headers) as answer:
            return answer.status, await answer.read()
