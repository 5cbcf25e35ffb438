"""Answers and the clients who may leave before their end, for every tier's edge.

Under an ASGI server a send to a client that is gone succeeds silently, so the server tells of it
(`trireme/service/hang_up.py`). A stream runs in its request's own task; one timer stands beside it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from types import MappingProxyType, TracebackType
from typing import Final, Self

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from trireme.service.hang_up import HangUp

NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


async def whole_body(receive: Receive, max_bytes: int) -> bytes | None:
    """A request's body; None as soon as it is longer than that.

    Starlette's own stream is an async generator, which costs more than the rest of reading.

    Raises:
        ClientDisconnect: the client went away while it sent.
    """
    pieces: list[bytes] = []
    num_bytes, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        pieces.append(message.get("body", b""))
        num_bytes += len(pieces[-1])
        if num_bytes > max_bytes:
            return None
        more = message.get("more_body", False)
    return b"".join(pieces)


class Leash:
    """`async with Leash(scope):` the block is cancelled when the client goes away.

    Raises:
        ClientDisconnect: at the block's end, when the client went away, also before the block, or
            `pull` was called.
    """

    def __init__(self, scope: Scope) -> None:
        self._hang_up = HangUp.of(scope)
        self._pulled = False
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0

    def pull(self) -> None:
        """End the block as if the client had gone."""
        if not self._pulled and self._task is not None:
            self._pulled = True
            self._task.cancel()

    async def __aenter__(self) -> Self:
        self._task = asyncio.current_task()
        assert self._task is not None
        self._cancelling = self._task.cancelling()
        if self._hang_up.done:
            asyncio.get_running_loop().call_soon(self.pull)  # once the block waits
        self._hang_up.calls.add(self.pull)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hang_up.calls.discard(self.pull)
        task, self._task = self._task, None
        if self._pulled and task is not None:
            ours_alone = task.uncancel() <= self._cancelling
            if ours_alone and kind is asyncio.CancelledError:
                raise ClientDisconnect from error


class Patience:
    """How long a client may read nothing, and when an idle stream says that it lives.

    Attributes:
        stuck_s: a client that reads nothing for so long is given up.
        ping: sent after `ping_s` seconds without anything else; empty sends nothing.
        tick_s: how often both are looked at.
    """

    __slots__ = ("ping", "ping_s", "stuck_s", "tick_s")

    def __init__(
        self, stuck_s: float, *, ping: bytes = b"", ping_s: float = 15.0, tick_s: float = 1.0
    ) -> None:
        self.stuck_s, self.ping, self.ping_s, self.tick_s = stuck_s, ping, ping_s, tick_s


class ByteStream(Response):
    """Sends ready pieces of a body; stops and closes their source when the client goes.

    Args:
        pieces: only this response iterates and closes it.
        close: awaited at the end, however it comes.
        stuck: called when the client is given up because it reads nothing.
    """

    def __init__(
        self,
        pieces: AsyncGenerator[bytes, None],
        media_type: str,
        patience: Patience,
        *,
        headers: Mapping[str, str] = NO_HEADERS,
        close: Callable[[], Awaitable[None]] | None = None,
        stuck: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(media_type=media_type, headers=headers)
        del self.headers["content-length"]
        self._pieces = pieces
        self._close = close
        self._patience = patience
        self._stuck = stuck

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            start = {"status": self.status_code, "headers": self.raw_headers}
            await send({"type": "http.response.start", **start})
            async with (
                Leash(scope) as leash,
                _Vigil(send, self._patience, leash, self._stuck) as to,
            ):
                async for piece in self._pieces:
                    await to.send(piece)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except ClientDisconnect:
            pass  # nobody is left to be told
        finally:
            await self._pieces.aclose()
            if self._close is not None:
                await self._close()


class _Vigil:
    """Sends, and looks after an idle or stuck client by a timer."""

    def __init__(
        self, send: Send, patience: Patience, leash: Leash, stuck: Callable[[], None] | None
    ) -> None:
        self._send = send
        self._patience = patience
        self._leash = leash
        self._stuck = stuck
        self._loop = asyncio.get_running_loop()
        self._sending = False
        self._sent_s = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._ping: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._timer = self._loop.call_later(self._patience.tick_s, self._tick)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._ping is not None:
            self._ping.cancel()
            await asyncio.gather(self._ping, return_exceptions=True)

    async def send(self, body: bytes) -> None:
        """Returns when the connection takes more."""
        self._sending, self._sent_s = True, self._loop.time()
        try:
            await self._send({"type": "http.response.body", "body": body, "more_body": True})
        finally:
            self._sending = False

    def _tick(self) -> None:
        patience = self._patience
        idle_s = self._loop.time() - self._sent_s
        if self._sending and idle_s > patience.stuck_s:
            if self._stuck is not None:
                self._stuck()
            self._leash.pull()
            return
        if patience.ping and not self._sending and idle_s > patience.ping_s:
            self._ping = asyncio.create_task(self.send(patience.ping))
        self._timer = self._loop.call_later(patience.tick_s, self._tick)
