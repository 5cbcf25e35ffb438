"""The proxy that stands for a network: silent after a cut, whole after it was mended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest

from tests.chaos.network import Proxy


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(100):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


@asynccontextmanager
async def echoed_through_a_proxy() -> AsyncIterator[tuple[Proxy, str, int]]:
    async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
        proxy = Proxy(server.sockets[0].getsockname()[1])
        await proxy.start()
        try:
            yield proxy, "127.0.0.1", urlsplit(proxy.worker_url).port or 0
        finally:
            await proxy.close()
            await asyncio.sleep(0.05)  # what was aborted is closed at the next turns of the loop


async def test_a_cut_network_says_nothing_and_loses_nothing_that_is_sent_again() -> None:
    async with echoed_through_a_proxy() as (proxy, host, port):
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"one")
        assert await reader.read(3) == b"one"
        proxy.cut()
        writer.write(b"two")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(3), 0.2)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.open_connection(host, port), 0.2)
        proxy.mend()
        assert await asyncio.wait_for(reader.read(3), 5) == b"two"
        _, again = await asyncio.wait_for(asyncio.open_connection(host, port), 5)
        for one in (again, writer):
            one.close()
            await one.wait_closed()
