"""HTTP/1.1 to workers: pooled connections, answers read as they come. Knows no worker, no event.

It does what the token path needs and no more: one POST at a time on a connection, bodies in pieces,
backpressure, one timer an answer in place of one a read. docs/performance.md says what that saves.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import httptools

IDLE_CONNECTION_S: Final = 30.0
"""Idle connections are dropped long before a worker drops them (75 s), so none is found dead."""
LINGER_S: Final = 1.0
"""How long the rest of a body may take whose reader has all it wants."""
MAX_BUFFERED_BYTES: Final = 64 * 1024
"""Of one answer; beyond it nothing is read from the socket until somebody takes it."""
CHECK_S: Final = 1.0


class ConnectFailed(ConnectionError):
    """No connection could be made, so nothing was sent."""


class Broken(ConnectionError):
    """The connection ended, or what came is no HTTP, before the answer was whole."""


class Origin(NamedTuple):
    """Where a connection leads; `header` is the Host header."""

    secure: bool
    host: str
    port: int
    header: str

    @classmethod
    @lru_cache(maxsize=4096)
    def of(cls, base_url: str) -> Origin:
        """Of `http(s)://host[:port]`."""
        parts = urlsplit(base_url)
        secure = parts.scheme == "https"
        host, port = parts.hostname or "", parts.port or (443 if secure else 80)
        return cls(secure, host, port, f"[{host}]:{port}" if ":" in host else f"{host}:{port}")


class HttpPool:
    """Keep-alive connections by origin.

    Args:
        connect_timeout_s: bound of one connect, name look-up and TLS included.
        headers: sent with every request.
    """

    def __init__(self, connect_timeout_s: float, headers: Mapping[str, str]) -> None:
        self._connect_timeout_s = connect_timeout_s
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._idle: dict[Origin, deque[_Connection]] = {}
        self._open: set[_Connection] = set()
        self._trusted: ssl.SSLContext | None = None

    async def post(self, base_url: str, path: str, body: bytes) -> Answer:
        """Send; the answer is still to be read, and to be closed by the caller.

        Raises:
            ConnectFailed: nothing was sent.
        """
        origin = Origin.of(base_url)
        connection = self._reuse(origin) or await self._connect(origin)
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {origin.header}\r\n{self._headers}"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        return connection.exchange(head.encode("utf-8", "surrogateescape") + body)

    def close(self) -> None:
        """Drop all connections."""
        for connection in list(self._open):
            connection.abort()

    def _reuse(self, origin: Origin) -> _Connection | None:
        """The connection that was used last; older ones run out behind it."""
        idle = self._idle.get(origin)
        oldest_s = asyncio.get_running_loop().time() - IDLE_CONNECTION_S
        while idle:
            connection = idle.pop()
            if connection.usable and connection.idle_since_s > oldest_s:
                return connection
            connection.abort()
        return None

    async def _connect(self, origin: Origin) -> _Connection:
        if origin.secure and self._trusted is None:
            self._trusted = ssl.create_default_context()  # it reads SSL_CERT_FILE
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: _Connection(origin, self._released, self._lost),
                    origin.host,
                    origin.port,
                    ssl=self._trusted if origin.secure else None,
                )
        except (OSError, TimeoutError, ValueError) as error:
            # ssl.SSLError is an OSError; ValueError: a host that cannot be one
            raise ConnectFailed(str(error) or type(error).__name__) from error
        self._open.add(connection)
        return connection

    def _released(self, connection: _Connection) -> None:
        idle = self._idle.setdefault(connection.origin, deque())
        idle.append(connection)
        while idle and idle[0].idle_since_s < connection.idle_since_s - IDLE_CONNECTION_S:
            idle.popleft().abort()

    def _lost(self, connection: _Connection) -> None:
        self._open.discard(connection)
        idle = self._idle.get(connection.origin)
        if idle is not None and connection in idle:
            idle.remove(connection)
        if not idle:
            self._idle.pop(connection.origin, None)


class _Connection(asyncio.Protocol):
    """One socket; carries one exchange at a time.

    Args:
        released: called when it may carry the next one. lost: called once, when it is gone.
    """

    def __init__(
        self,
        origin: Origin,
        released: Callable[[_Connection], None],
        lost: Callable[[_Connection], None],
    ) -> None:
        self.origin = origin
        self.idle_since_s = 0.0
        self._released = released
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._answer: Answer | None = None
        self._framed = False
        self._paused = False

    @property
    def usable(self) -> bool:
        """Whether a request can be sent now."""
        transport = self._transport
        return self._answer is None and transport is not None and not transport.is_closing()

    def exchange(self, request: bytes) -> Answer:
        """Send a request; only when no other is under way."""
        assert self._transport is not None
        assert self._answer is None
        self._framed = False
        self._answer = Answer(self, self._loop)
        self._transport.write(request)
        return self._answer

    def abort(self) -> None:
        """Close at once; the peer notices."""
        if self._transport is not None:
            self._transport.abort()

    def pause(self, paused: bool) -> None:
        """Stop or go on reading from the socket."""
        if self._transport is None or self._paused == paused or self._transport.is_closing():
            return
        self._paused = paused
        (self._transport.pause_reading if paused else self._transport.resume_reading)()

    def give_up(self, answer: Answer) -> None:
        """The answer's reader has gone; an answer that is not whole ends the connection."""
        if self._answer is answer:
            self.abort()

    # ---- asyncio's callbacks --------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # TCP and TLS ones are Transports

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._break(f"what came is no HTTP: {error}")

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if self._answer is not None and self._answer.status and not self._framed and error is None:
            self._complete()  # a body without length or chunks ends with its connection
        self._break(f"the connection ended: {error!r}")
        self._lost(self)

    # ---- the parser's callbacks -----------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._answer is None:  # nobody asked: it must not become the next request's answer
            self.abort()

    def on_header(self, name: bytes, _value: bytes) -> None:
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._framed = True

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            self._framed = False  # that was the length of what has no body
        if self._answer is not None and status >= 200:
            self._answer.begin(status)

    def on_body(self, body: bytes) -> None:
        if self._answer is not None and self._answer.add(body) > MAX_BUFFERED_BYTES:
            self.pause(True)

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() >= 200:
            self._complete()

    def _complete(self) -> None:
        answer, self._answer = self._answer, None
        if answer is None:
            return
        reusable = self._transport is not None and self._parser.should_keep_alive()
        answer.end(None)
        self.pause(False)
        if reusable:
            self.idle_since_s = self._loop.time()
            self._released(self)
        else:
            self.abort()

    def _break(self, reason: str) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.end(reason)
        self.abort()


class Answer:
    """What comes back for one request; whoever asked closes it.

    Attributes:
        status: the HTTP status, 0 until its headers are there.
        wanted: set it to False when the rest of the body does not matter, so that closing keeps
            the connection.
    """

    def __init__(self, connection: _Connection, loop: asyncio.AbstractEventLoop) -> None:
        self.status = 0
        self.wanted = True
        self._connection = connection
        self._loop = loop
        self._pieces: list[bytes] = []
        self._buffered = 0
        self._ended = False
        self._broken: str | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._waits_since_s = 0.0
        self._patience_s = float("inf")
        self._deadline_s = float("inf")
        self._check: Callable[[], Exception | None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._looks_at_s = 0.0

    # ---- for the reader -------------------------------------------------------------------------

    def watch(
        self, patience_s: float, deadline_s: float, check: Callable[[], Exception | None]
    ) -> None:
        """Bound the reader's waits from now on; call it again to change the bounds.

        Args:
            patience_s: longest wait for the next piece, or for the headers.
            deadline_s: loop time after which no wait goes on; either bound is a TimeoutError.
            check: asked each second of a wait; an error that it returns ends it.
        """
        self._patience_s, self._deadline_s, self._check = patience_s, deadline_s, check
        if not self._ended:
            self._arm()

    async def headers(self) -> int:
        """The status, once it is there.

        Raises:
            Broken, TimeoutError, or what `check` gave.
        """
        if not self.status and self._broken is None:
            await self._wait()
        self._raise()
        return self.status

    async def read(self) -> bytes:
        """What has come of the body since the last call; empty at its end.

        Raises:
            Broken, TimeoutError, or what `check` gave.
        """
        while not self._pieces and not self._ended:
            self._raise()
            await self._wait()
        if self._loop.time() >= self._deadline_s:
            raise TimeoutError
        if not self._pieces:
            self._raise()
            return b""
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._buffered = 0
        self._connection.pause(False)
        return data

    async def whole(self) -> bytes:
        """The rest of the body; raises as `read` does."""
        pieces = []
        while piece := await self.read():
            pieces.append(piece)
        return b"".join(pieces)

    def close(self) -> None:
        """End it; the connection goes back to its pool when the body is through, else it ends."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._ended:
            return
        if self.wanted:
            self._connection.give_up(self)
        else:
            self._timer = self._loop.call_later(LINGER_S, self._connection.give_up, self)

    # ---- for the connection ---------------------------------------------------------------------

    def begin(self, status: int) -> None:
        self.status = status
        self._wake()

    def add(self, body: bytes) -> int:
        """Take a piece of the body; returns the bytes that nobody has read yet."""
        if not self.wanted:
            return 0
        self._pieces.append(body)
        self._buffered += len(body)
        self._wake()
        return self._buffered

    def end(self, broken: str | None) -> None:
        """Nothing more comes, for this reason when it is not the body's end."""
        self._ended, self._broken = True, broken
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._wake()

    # ---- waiting --------------------------------------------------------------------------------

    def _raise(self) -> None:
        if self._broken is not None:
            raise Broken(self._broken)  # kept, it would keep its frames, and they this answer

    async def _wait(self) -> None:
        self._waits_since_s = self._loop.time()
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _arm(self) -> None:
        """Look again in a second, or when a bound is reached; an earlier look stays."""
        now_s = self._loop.time()
        at_s = now_s + min(self._patience_s, CHECK_S)
        if self._waiter is not None:
            at_s = min(at_s, self._deadline_s, self._waits_since_s + self._patience_s)
        elif self._deadline_s > now_s:
            at_s = min(at_s, self._deadline_s)
        if self._timer is not None:
            if self._looks_at_s <= at_s:
                return
            self._timer.cancel()
        # uvloop's handle of a time that has passed does not know its time
        self._looks_at_s, self._timer = at_s, self._loop.call_at(at_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        fault: Exception | None = None
        if self._waiter is not None:
            now_s = self._loop.time()
            if now_s >= min(self._deadline_s, self._waits_since_s + self._patience_s):
                fault = TimeoutError()
            elif self._check is not None:
                fault = self._check()
        if fault is None:
            self._arm()
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(fault)
