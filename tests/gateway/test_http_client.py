"""The HTTP client for workers, on real sockets against peers that follow a script."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
import uvloop

from gateway import http_client
from gateway.http_client import Answer, Broken, ConnectFailed, HttpPool, Origin
from tests.gateway.fakes import until

Handler = Callable[["Peer", asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
FOREVER = float("inf")


class Peer:
    """A server that answers each connection by a handler."""

    def __init__(self) -> None:
        self.connections = 0
        self.requests: list[bytes] = []
        self.url = ""

    async def request(self, reader: asyncio.StreamReader) -> bytes:
        """Read one request; its body."""
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        self.requests.append(head + await reader.readexactly(length))
        return self.requests[-1]


@contextlib.asynccontextmanager
async def peer(handler: Handler) -> AsyncIterator[Peer]:
    made, tasks = Peer(), []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        made.connections += 1
        tasks.append(asyncio.current_task())
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await handler(made, reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield made
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.contextmanager
def pool() -> Iterator[HttpPool]:
    made = HttpPool(1.0, {"Content-Type": "application/json"})
    try:
        yield made
    finally:
        made.close()


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


async def echo(p: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers every request on a connection with its body."""
    while True:
        body = (await p.request(reader)).partition(b"\r\n\r\n")[2]
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))


async def whole(answer: Answer) -> tuple[int, bytes]:
    try:
        return await answer.headers(), await answer.whole()
    finally:
        answer.close()


async def test_one_connection_carries_request_after_request() -> None:
    async with peer(echo) as p:
        with pool() as http:
            for number in range(3):
                body = b"%d" % number
                assert await whole(await http.post(p.url, "/x", body)) == (200, body)
    assert p.connections == 1
    assert p.requests[0].startswith(b"POST /x HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"\r\nContent-Type: application/json\r\n" in p.requests[0]


async def test_requests_at_the_same_time_have_connections_of_their_own() -> None:
    async with peer(echo) as p:
        with pool() as http:
            answers = await asyncio.gather(*(http.post(p.url, "/", b"%d" % i) for i in range(4)))
            found = [await whole(answer) for answer in answers]
    assert found == [(200, b"%d" % i) for i in range(4)]
    assert p.connections == 4


async def test_pieces_come_as_they_are_sent() -> None:
    go_on = asyncio.Event()

    async def handler(p: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await p.request(reader)
        writer.write(HEAD + chunked(b"one"))
        await go_on.wait()
        writer.write(chunked(b"two", b"three") + b"0\r\n\r\n")
        await reader.read()

    async with peer(handler) as p:
        with pool() as http:
            answer = await http.post(p.url, "/", b"")
            assert await answer.headers() == 200
            assert await answer.read() == b"one"
            go_on.set()
            assert await answer.read() == b"twothree"
            assert await answer.read() == b""
            answer.close()


async def test_nobody_there_is_a_failed_connect() -> None:
    async with peer(echo) as p:
        url = p.url
    with pool() as http, pytest.raises(ConnectFailed):
        await http.post(url, "/", b"")


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        HEAD,
        HEAD + chunked(b"half"),
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf",
        b"no HTTP at all\r\n\r\n",
        HEAD + b"zz\r\nno size\r\n",
    ],
)
async def test_an_answer_that_breaks_off_or_is_none_is_broken(sent: bytes) -> None:
    async def handler(p: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await p.request(reader)
        writer.write(sent)

    async with peer(handler) as p:
        with pool() as http:
            answer = await http.post(p.url, "/", b"")
            with pytest.raises(Broken):
                await whole(answer)


async def test_a_body_without_a_length_ends_with_its_connection() -> None:
    async def handler(p: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await p.request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nall of it")

    async with peer(handler) as p:
        with pool() as http:
            for _ in range(2):
                assert await whole(await http.post(p.url, "/", b"")) == (200, b"all of it")
        assert p.connections == 2


async def test_closing_early_ends_the_connection_at_once() -> None:
    ended = asyncio.Event()

    async def handler(p: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await p.request(reader)
        writer.write(HEAD + chunked(b"one"))
        with contextlib.suppress(ConnectionError):
            await reader.read()
        ended.set()

    async with peer(handler) as p:
        with pool() as http:
            answer = await http.post(p.url, "/", b"")
            assert await answer.read() == b"one"
            answer.close()
            await asyncio.wait_for(ended.wait(), 1)
            assert not http._open or not http._idle


async def test_an_answer_whose_rest_does_not_matter_keeps_its_connection() -> None:
    finish = asyncio.Event()

    async def handler(p: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await p.request(reader)
            writer.write(HEAD + chunked(b"all that counts"))
            await finish.wait()
            writer.write(chunked(b"rest") + b"0\r\n\r\n")

    async with peer(handler) as p:
        with pool() as http:
            for _ in range(2):
                answer = await http.post(p.url, "/", b"")
                assert (await answer.read()).startswith(b"all that counts")
                answer.wanted = False
                answer.close()
                finish.set()
                await until(lambda: http._idle)
        assert p.connections == 1


async def test_a_rest_that_does_not_come_is_not_waited_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_client, "LINGER_S", 0.05)
    ended = asyncio.Event()

    async def handler(p: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await p.request(reader)
        writer.write(HEAD + chunked(b"all that counts"))
        with contextlib.suppress(ConnectionError):
            await reader.read()
        ended.set()

    async with peer(handler) as p:
        with pool() as http:
            answer = await http.post(p.url, "/", b"")
            await answer.read()
            answer.wanted = False
            answer.close()
            await asyncio.wait_for(ended.wait(), 1)


async def test_what_nobody_asked_for_is_never_the_next_answer() -> None:
    async def handler(p: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await p.request(reader)
        fine = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nmine"
        writer.write(fine + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged")
        await reader.read()

    async with peer(handler) as p:
        with pool() as http:
            for _ in range(3):
                assert await whole(await http.post(p.url, "/", b"")) == (200, b"mine")
        assert p.connections == 3


@pytest.mark.parametrize("early", [b"HTTP/1.1 103 Early Hints\r\nLink: </>\r\n\r\n", b""])
async def test_an_interim_answer_is_passed_over(early: bytes) -> None:
    async def handler(p: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await p.request(reader)
        writer.write(early + b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno")
        await reader.read()

    async with peer(handler) as p:
        with pool() as http:
            assert await whole(await http.post(p.url, "/", b"")) == (404, b"no")


async def test_connection_close_is_obeyed() -> None:
    async def handler(p: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await p.request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
        await reader.read()

    async with peer(handler) as p:
        with pool() as http:
            for _ in range(2):
                assert await whole(await http.post(p.url, "/", b"")) == (200, b"ok")
        assert p.connections == 2


async def silent(p: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await p.request(reader)
    writer.write(HEAD + chunked(b"one"))
    await reader.read()


async def test_patience_deadline_and_check_each_end_a_wait() -> None:
    loop = asyncio.get_running_loop()
    async with peer(silent) as p:
        with pool() as http:
            for patience_s, deadline_s, check, error in (
                (0.05, FOREVER, lambda: None, TimeoutError),
                (FOREVER, loop.time() + 0.1, lambda: None, TimeoutError),
                (0.05, FOREVER, lambda: KeyError("gone"), TimeoutError),
            ):
                answer = await http.post(p.url, "/", b"")
                answer.watch(patience_s, deadline_s, check)
                assert await answer.read() == b"one"
                began = loop.time()
                with pytest.raises(error):
                    await answer.read()
                assert loop.time() - began < 1
                answer.close()


def test_a_deadline_in_less_than_a_millisecond_can_be_watched_twice() -> None:
    """uvloop gives no timer for it but a plain handle, which does not know its time."""

    async def watched() -> None:
        with pool() as http, socket.create_server(("127.0.0.1", 0)) as silent:
            answer = await http.post(f"http://127.0.0.1:{silent.getsockname()[1]}", "/", b"{}")
            soon_s = asyncio.get_running_loop().time() + 0.0004
            answer.watch(5, soon_s, lambda: None)
            answer.watch(3, soon_s, lambda: None)
            with pytest.raises(TimeoutError):
                await answer.whole()

    uvloop.run(watched())


async def test_the_check_is_asked_while_nothing_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "CHECK_S", 0.02)
    asked = 0

    def gone() -> Exception | None:
        nonlocal asked
        asked += 1
        return KeyError("gone") if asked == 3 else None

    async with peer(silent) as p:
        with pool() as http:
            answer = await http.post(p.url, "/", b"")
            answer.watch(FOREVER, FOREVER, gone)
            assert await answer.read() == b"one"
            with pytest.raises(KeyError):
                await answer.read()
            answer.close()
    assert asked == 3


async def test_a_reader_that_is_busy_has_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def handler(p: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await p.request(reader)
        writer.write(HEAD + chunked(b"one"))
        await asyncio.sleep(0.2)
        writer.write(chunked(b"two") + b"0\r\n\r\n")
        await reader.read()

    async with peer(handler) as p:
        with pool() as http:
            answer = await http.post(p.url, "/", b"")
            answer.watch(0.15, FOREVER, lambda: None)
            assert await answer.read() == b"one"
            await asyncio.sleep(0.3)  # nobody waits, so nobody is kept waiting
            assert await answer.read() == b"two"
            answer.close()


async def test_what_nobody_reads_fills_no_memory() -> None:
    sent = 0

    async def handler(p: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await p.request(reader)
        writer.write(HEAD)
        for _ in range(2000):
            writer.write(chunked(b"x" * 32768))
            await writer.drain()
            sent += 32768
        writer.write(b"0\r\n\r\n")
        await reader.read()

    async with peer(handler) as p:
        with pool() as http:
            answer = await http.post(p.url, "/", b"")
            await answer.headers()
            await asyncio.sleep(0.3)
            stopped_at = sent
            await asyncio.sleep(0.1)
            assert sent == stopped_at < 40_000_000
            assert answer._buffered < 2 * 1024 * 1024
            assert len(await answer.whole()) == 2000 * 32768
            answer.close()


def test_origins_have_default_ports_and_brackets() -> None:
    assert Origin.of("http://h") == (False, "h", 80, "h:80")
    assert Origin.of("https://h") == (True, "h", 443, "h:443")
    assert Origin.of("http://[::1]:8000").header == "[::1]:8000"
