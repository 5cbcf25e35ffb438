"""The client's side of an answer: work that ends when the client goes, and the event stream.

Under an ASGI server a send to a client that is gone succeeds silently, so `receive` is watched.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from time import monotonic
from typing import Any, Final, TypeVar

from fastapi import Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from protocol.framing import SSE_PING

_T = TypeVar("_T")

PING_S: Final = 15.0
STUCK_S: Final = 30.0
"""A client that reads nothing for so long is given up."""
TICK_S: Final = 1.0

_HEADERS: Final = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


async def while_connected(request: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """The result of `work`, which is cancelled when the client goes away.

    Raises:
        ClientDisconnect: the client went away first.
    """
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_gone(request.receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        await _ended(task, gone)


class EventStream(Response):
    """Server-sent events as ready bytes; stops and closes its source when the client goes.

    Args:
        frames: the events. close: awaited at the end, however it comes.
    """

    media_type = "text/event-stream"

    def __init__(
        self, frames: AsyncGenerator[bytes, None], close: Callable[[], Awaitable[None]]
    ) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._frames = frames
        self._close = close
        self._sent_s = monotonic()
        self._sending = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            tasks = [
                asyncio.create_task(step)
                for step in (self._send_frames(send), _gone(receive), self._ping(send))
            ]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                frames = tasks[0]
                finished = frames.done()
                if finished:
                    frames.result()
            finally:
                await _ended(*tasks)
            if finished:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await self._frames.aclose()
            await self._close()

    async def _send_frames(self, send: Send) -> None:
        async for frame in self._frames:
            await self._send(send, frame)

    async def _ping(self, send: Send) -> None:
        """Keeps idle connections open; returns when the client has stopped reading."""
        while True:
            await asyncio.sleep(TICK_S)
            idle_s = monotonic() - self._sent_s
            if self._sending and idle_s > STUCK_S:
                return
            if not self._sending and idle_s > PING_S:
                await self._send(send, SSE_PING)

    async def _send(self, send: Send, body: bytes) -> None:
        self._sending, self._sent_s = True, monotonic()
        try:
            await send({"type": "http.response.body", "body": body, "more_body": True})
        finally:
            self._sending = False


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _ended(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
