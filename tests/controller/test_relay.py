from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest
import trustme

from controller.feed import FleetFeed
from controller.metrics import ControllerMetrics
from controller.registry import Registry
from controller.relay import Relay

FRAME = b'{"text":"hi","error_code":0}\0'


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(FRAME) + FRAME)
    await writer.drain()
    writer.close()


async def test_a_worker_under_tls_is_trusted_by_ssl_cert_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    server = await asyncio.start_server(_answer, "127.0.0.1", 0, ssl=context)
    registry = Registry(ttl_s=5.0, epoch="e", now=0.0, sweep_every_s=1.0)
    relay = Relay("", ControllerMetrics(registry, FleetFeed(registry), lambda: 0))
    try:
        port = server.sockets[0].getsockname()[1]
        frames = [frame async for frame in relay.stream(f"https://127.0.0.1:{port}", b"{}")]
    finally:
        await relay.close()
        server.close()
        await server.wait_closed()
    assert frames == [FRAME]
