"""What reaches no app: heads without end, heads that never come, requests that are two at once."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import cast

import pytest
import uvicorn
from fastapi import FastAPI

from trireme.service import http_head
from trireme.service.http_head import MAX_HEAD_BYTES, BoundedHttp
from trireme.service.server import run
from trireme.service.settings import TierSettings, settings_config

IDLE_S = 1
"""Of the sample server."""


class Served:
    """An app that counts its requests, on a real socket."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.requests: list[str] = []
        self.reads_bodies = True
        self.connections: Callable[[], Iterable[BoundedHttp]] = list
        self.hold: Callable[[], Awaitable[object]] | None = None
        """Awaited before the next answer."""

    async def exchange(self, *pieces: bytes, timeout_s: float = 5.0) -> bytes:
        """All that comes back until the server closes the connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            async with asyncio.timeout(timeout_s):
                with contextlib.suppress(ConnectionError):
                    for piece in pieces:
                        writer.write(piece)
                        await writer.drain()
                    return await reader.read(1_000_000)
                return b""
        finally:
            writer.close()


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    app = FastAPI()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    made = Served(listener.getsockname()[1])

    @app.middleware("http")
    async def count(request, call_next):  # type: ignore[no-untyped-def]
        body = await request.body() if made.reads_bodies else b""
        made.requests.append(f"{request.method} {request.url.path} {body!r}")
        if made.hold is not None:
            await made.hold()
        return await call_next(request)

    config = uvicorn.Config(
        app,
        http=BoundedHttp,
        ws="none",
        log_config=None,
        lifespan="off",
        timeout_keep_alive=IDLE_S,
    )
    server = uvicorn.Server(config)
    made.connections = lambda: cast("Iterable[BoundedHttp]", server.server_state.connections)
    task = asyncio.create_task(server._serve(sockets=[listener]))
    while not server.started:  # noqa: ASYNC110 - uvicorn tells nobody
        await asyncio.sleep(0.01)
    yield made
    server.should_exit = True
    await task


def flood(size: int) -> list[bytes]:
    return [b"a" * 65_536] * (size // 65_536)


@pytest.mark.parametrize(
    "beginning",
    [
        b"GET /",
        b"GET / HTTP/1.1\r\nhost: x\r\nx-",
        b"GET / HTTP/1.1\r\nhost: x\r\nx: ",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: ",
    ],
    ids=["path", "name", "value", "trailer"],
)
async def test_a_head_without_end_is_cut_off(served: Served, beginning: bytes) -> None:
    """The server would read 64 MiB if nobody stopped it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    sent = 0
    async with asyncio.timeout(10):
        with contextlib.suppress(ConnectionError):
            writer.write(beginning)
            for piece in flood(64 * 1024 * 1024):
                writer.write(piece)
                await writer.drain()
                sent += len(piece)
        with contextlib.suppress(ConnectionError):
            await reader.read()
    writer.close()
    assert sent < 16 * MAX_HEAD_BYTES, "what the sockets hold beside it"


async def test_many_small_headers_are_cut_off_too(served: Served) -> None:
    lines = b"".join(b"x-%d: y\r\n" % number for number in range(40_000))
    answer = await served.exchange(b"GET / HTTP/1.1\r\nhost: x\r\n", lines)
    assert b" 431 " in answer.partition(b"\r\n")[0] or answer == b""
    assert served.requests == []


async def test_a_large_body_is_no_head(served: Served) -> None:
    size = 4 * MAX_HEAD_BYTES
    head = b"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % size
    answer = await served.exchange(head, *[b"b" * 65_536] * (size // 65_536))
    assert b" 404 " in answer.partition(b"\r\n")[0]
    assert len(served.requests) == 1


async def test_a_head_that_does_not_come_closes_its_connection(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_head, "HEAD_TIMEOUT_S", 0.2)
    assert await served.exchange(timeout_s=3) == b"", "nothing was sent at all"
    assert await served.exchange(b"GET / HTTP/1.1\r\nhost:", timeout_s=3) == b""
    second = await served.exchange(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", b"GET /", timeout_s=3)
    assert second.count(b"HTTP/1.1 404") == 1, "the first is answered, the second is late"


@pytest.mark.parametrize("stray", [b"\r\n", b"G", b"\r\n\r\n"])
async def test_stray_bytes_hold_no_connection(
    served: Served, monkeypatch: pytest.MonkeyPatch, stray: bytes
) -> None:
    """After an answer they end the server's own timer for idle connections."""
    monkeypatch.setattr(http_head, "HEAD_TIMEOUT_S", 0.3)
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    await reader.readuntil(b"}")
    writer.write(stray)
    async with asyncio.timeout(3):
        assert await reader.read() == b""
    writer.close()


async def test_a_body_that_nobody_waits_for_holds_no_connection(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The app has answered before it came, as it does without a key."""
    monkeypatch.setattr(http_head, "HEAD_TIMEOUT_S", 0.3)
    served.reads_bodies = False
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n")
    await reader.readuntil(b"}")
    writer.write(b"x")
    async with asyncio.timeout(3):
        assert await reader.read() == b""
    writer.close()


async def test_a_body_that_stops_half_way_ends_with_its_connection(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_head, "BODY_TIMEOUT_S", 0.3)
    head = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n"
    late = await served.exchange(head, b"half", timeout_s=3)
    assert late.startswith(b"HTTP/1.1 408 ")
    whole = await served.exchange(head, b"half", b"other", timeout_s=3)
    assert whole.startswith(b"HTTP/1.1 404 "), "one that comes in time is answered"


async def test_a_pipelined_body_has_its_bound_when_the_response_before_has_ended(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then it is not read, and what would be written is in the middle of that response."""
    monkeypatch.setattr(http_head, "BODY_TIMEOUT_S", 0.3)
    ended = asyncio.Event()
    served.hold = ended.wait
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(b"GET /first HTTP/1.1\r\nhost: x\r\n\r\n")
    writer.write(b"POST /second HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nhalf")
    async with asyncio.timeout(5):
        await asyncio.sleep(0.6)
        ended.set()
        both = await reader.read()
    writer.close()
    first, _, second = both.partition(b"}")
    assert first.startswith(b"HTTP/1.1 404 "), "it has ended as it would have alone"
    assert second.startswith(b"HTTP/1.1 408 ")


async def test_an_idle_connection_is_closed_in_its_time_from_the_last_answer(
    served: Served,
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    loop = asyncio.get_running_loop()
    for pause_s in (0.4, 0.4, 0.4, 0.0):
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await reader.readuntil(b"}")
        await asyncio.sleep(pause_s)
    began = loop.time()
    async with asyncio.timeout(5):
        assert await reader.read() == b""
    assert IDLE_S - 0.1 < loop.time() - began < IDLE_S + 1
    writer.close()


async def test_a_connection_that_waits_keeps_nothing_of_its_last_request(served: Served) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    head = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\n"
    for pieces in ([head + b"body"], [head, b"bo", b"dy"]):
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0.02)
        await reader.readuntil(b"}")
        [connection] = served.connections()
        assert (connection.cycle, connection.scope, connection.headers) == (None, None, None)
    writer.close()


async def test_a_request_that_came_before_the_answer_of_the_last_one_is_kept(
    served: Served,
) -> None:
    ended = asyncio.Event()
    served.hold = ended.wait
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(b"GET /first HTTP/1.1\r\nhost: x\r\n\r\n")
    writer.write(b"GET /second HTTP/1.1\r\nhost: x\r\n\r\nGET /thi")
    await asyncio.sleep(0.05)
    ended.set()
    async with asyncio.timeout(5):
        for _ in range(2):
            await reader.readuntil(b"}")
        writer.write(b"rd HTTP/1.1\r\nhost: x\r\n\r\n")
        await reader.readuntil(b"}")
    assert served.requests == ["GET /first b''", "GET /second b''", "GET /third b''"]
    writer.close()


async def test_a_connection_that_is_lost_is_freed_at_once(served: Served) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    await reader.readuntil(b"}")
    freed = asyncio.Event()
    [_] = [weakref.finalize(one, freed.set) for one in served.connections()]
    gc.disable()
    try:
        writer.close()
        async with asyncio.timeout(5):
            await freed.wait()
    finally:
        gc.enable()


SMUGGLED = b"GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.mark.parametrize(
    "head",
    [
        b"content-length: 5\r\ntransfer-encoding: chunked",
        b"transfer-encoding: chunked\r\ncontent-length: 5",
        b"content-length: 5\r\ncontent-length: 6",
        b"content-length: 5, 6",
        b"content-length: +5",
        b"content-length: -5",
        b"content-length: 0x5",
        b"content-length: 5 5",
        b"content-length: ",
        b"content-length : 5",
        b"transfer-encoding: xchunked",
        b"transfer-encoding: chunked, identity",
        b"transfer-encoding: chunked\r\ntransfer-encoding: identity",
        b"transfer-encoding : chunked",
        b"transfer-encoding:\x0bchunked",
        b"transfer-encoding\x00: chunked",
        b"x: y\n content-length: 5",
        b"x: y\rcontent-length: 5",
    ],
)
async def test_a_body_of_two_lengths_is_refused(served: Served, head: bytes) -> None:
    """A proxy before us might see another end of it, and another request behind it."""
    body = b"0\r\n\r\n" + SMUGGLED
    request = b"POST /first HTTP/1.1\r\nhost: x\r\n" + head + b"\r\n\r\n" + body
    answer = await served.exchange(request)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"connection: close" in answer
    assert not any("smuggled" in one for one in served.requests)


async def test_an_upgrade_is_an_ordinary_request(served: Served) -> None:
    head = b"GET /up HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    keys = b"sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    with contextlib.suppress(TimeoutError):
        await served.exchange(head + keys, timeout_s=0.5)
    assert served.requests == ["GET /up b''"]


def test_every_tier_runs_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    configured: list[uvicorn.Config] = []

    class Sample(TierSettings):
        model_config = settings_config("sample")

    def stop(self: uvicorn.Server, sockets: object = None) -> None:
        configured.append(self.config)
        self.started = True

    monkeypatch.setattr(uvicorn.Server, "run", stop)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert run(FastAPI(), Sample(), listener) == 0
    [config] = configured
    assert config.http is BoundedHttp
    assert config.proxy_headers is False, "X-Forwarded-For says nothing"
