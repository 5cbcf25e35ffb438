"""Several gateway processes behind one port: real children, killed, counted together."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
import trustme

from tests.gateway.fakes import MODEL, FakeController, FakeWorker, record, serving, until

BODY: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


class Gateway:
    """`python -m gateway --processes 2`."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, scheme: str) -> None:
        self.process = process
        self.url = f"{scheme}://127.0.0.1:{port}"

    def children(self) -> list[psutil.Process]:
        found = []
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):  # a zombie counts as none, too
                if "gateway.process" in " ".join(child.cmdline()):
                    found.append(child)
        return found

    async def ask(self, **fields: Any) -> int:
        """The status of a request on a connection of its own."""
        async with (
            aiohttp.ClientSession() as http,
            http.post(f"{self.url}/v1/chat/completions", json=BODY | fields) as answer,
        ):
            await answer.read()
            return answer.status

    async def counted(self) -> int:
        """Requests with status 200 that /metrics shows."""
        async with aiohttp.ClientSession() as http, http.get(f"{self.url}/metrics") as answer:
            assert answer.status == 200
            text = await answer.text()
        found = re.findall(r'requests_total\{.*model="demo".*status="200"\} (\S+)', text)
        assert len(found) <= 1, "one line for all processes"
        return int(float(found[0])) if found else 0


@contextlib.asynccontextmanager
async def running(
    worker: FakeWorker, *flags: str, port: int = 0, scheme: str = "http", **environment: str
) -> AsyncIterator[Gateway]:
    controller, port = FakeController(), port or free_port()
    async with serving(worker.app()) as at, serving(controller.app()) as fleet:
        controller.set(record("w1", at))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway", "--port", str(port), "--processes", "2"),
            *("--controller-address", fleet, "--log-level", "warning", *flags),
            stderr=asyncio.subprocess.PIPE,
            env={**_plain_environment(), **environment} if environment else None,
        )
        gateway = Gateway(process, port, scheme)
        try:
            yield gateway
        finally:
            if process.returncode is None:
                children = gateway.children()
                process.kill()
                await process.wait()
                for child in children:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        child.kill()


def _plain_environment() -> dict[str, str]:
    import os

    return dict(os.environ)


async def both_serve(gateway: Gateway, but: int = 0) -> list[psutil.Process]:
    """The two children, once both have said that they serve; `but` is one that is gone."""
    found: list[psutil.Process] = []

    def two() -> bool:
        nonlocal found
        found = [one for one in gateway.children() if one.pid != but]
        return len(found) == 2

    await until(two, 30)
    for child in found:  # each has a connection to the controller once it follows the fleet
        await until(lambda child=child: child.net_connections("tcp"), 30)
    for _ in range(400):
        with contextlib.suppress(aiohttp.ClientError):
            async with (
                aiohttp.ClientSession() as http,
                http.get(gateway.url + "/readyz") as answer,
            ):
                if answer.status == 200:
                    return found
        await asyncio.sleep(0.05)
    raise AssertionError("the gateway did not become ready")


async def test_requests_go_on_when_a_process_is_killed_and_none_is_uncounted() -> None:
    async with running(FakeWorker()) as gateway:
        killed, _ = await both_serve(gateway)
        assert [await gateway.ask(stream=i % 2 == 0) for i in range(20)] == [200] * 20
        assert await gateway.counted() == 20
        await asyncio.sleep(1.2)  # each has told its numbers
        killed.kill()
        assert [await gateway.ask() for _ in range(20)] == [200] * 20
        assert await gateway.counted() == 40
        await both_serve(gateway, but=killed.pid)
        assert [await gateway.ask() for _ in range(5)] == [200] * 5
        assert await gateway.counted() == 45


async def test_a_limit_holds_for_all_processes_together() -> None:
    async with running(FakeWorker(), "--limit-requests", "5") as gateway:
        await both_serve(gateway)
        found = await asyncio.gather(*(gateway.ask() for _ in range(24)))
        assert sorted(found) == [200] * 5 + [429] * 19


async def test_a_stream_on_a_killed_process_breaks_and_frees_the_worker() -> None:
    worker = FakeWorker(hang_after=3)
    async with running(worker) as gateway:
        children = await both_serve(gateway)
        asked = asyncio.create_task(gateway.ask(stream=True))
        await until(lambda: worker.running == 1)
        for child in children:
            child.kill()
        with pytest.raises(aiohttp.ClientError):
            await asked
        await until(lambda: worker.running == 0)


@pytest.mark.parametrize("stream", [False, True])
async def test_sigterm_drains_all_processes_and_ends_with_0(stream: bool) -> None:
    worker = FakeWorker(pause_s=0.15)
    async with running(worker) as gateway:
        await both_serve(gateway)
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(gateway.ask(stream=stream)) for _ in range(6)]
            await until(lambda: len(worker.requests) == 6)
            gateway.process.send_signal(signal.SIGTERM)
        assert [one.result() for one in asked] == [200] * 6
        _, stderr = await asyncio.wait_for(gateway.process.communicate(), 5)
        assert (gateway.process.returncode, stderr) == (0, b"")
        with pytest.raises(aiohttp.ClientConnectorError):
            await gateway.ask()


async def test_a_second_signal_stops_at_once() -> None:
    worker = FakeWorker(hang_after=2)
    async with running(worker) as gateway:
        children = await both_serve(gateway)
        asked = asyncio.create_task(gateway.ask(stream=True))
        await until(lambda: worker.running == 1)
        gateway.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.3)
        gateway.process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(gateway.process.wait(), 5)
        assert not any(child.is_running() for child in children)
        with pytest.raises(aiohttp.ClientError):
            await asked


async def test_children_end_when_their_parent_is_killed() -> None:
    async with running(FakeWorker()) as gateway:
        children = await both_serve(gateway)
        gateway.process.kill()
        await until(lambda: not any(child.is_running() for child in children), 10)


async def test_a_taken_port_is_exit_code_4() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        async with running(FakeWorker(), port=taken.getsockname()[1]) as gateway:
            _, stderr = await asyncio.wait_for(gateway.process.communicate(), 20)
    assert gateway.process.returncode == 4
    assert stderr.count(b"\n") == 1


async def test_children_that_cannot_start_end_it_all(tmp_path: Path) -> None:
    # the parent does without this library
    (tmp_path / "aiohttp.py").write_text("raise ImportError('not installed well')\n")
    path = f"{tmp_path}:{Path(__file__).parents[2]}"
    async with running(FakeWorker(), PYTHONPATH=path) as gateway:
        _, stderr = await asyncio.wait_for(gateway.process.communicate(), 30)
        assert b"not installed well" in stderr
        assert gateway.process.returncode == 1


async def test_all_processes_speak_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    key, chain = tmp_path / "key.pem", tmp_path / "chain.pem"
    issued.private_key_pem.write_to_path(key)
    issued.cert_chain_pems[0].write_to_path(chain)
    trusted = ssl.create_default_context()
    authority.configure_trust(trusted)
    files = {"SSL_KEYFILE": str(key), "SSL_CERTFILE": str(chain)}
    async with running(FakeWorker(), "--ssl", scheme="https", **files) as gateway:
        for _ in range(20):
            connector = aiohttp.TCPConnector(ssl=trusted)
            async with aiohttp.ClientSession(connector=connector) as http:
                for _ in range(200):
                    with contextlib.suppress(aiohttp.ClientConnectorError):
                        async with http.get(gateway.url + "/health") as answer:
                            assert answer.status == 200
                            break
                    await asyncio.sleep(0.05)
                else:
                    raise AssertionError("no answer")


async def test_any_process_finds_the_route_of_a_request() -> None:
    async with running(FakeWorker()) as gateway:
        await both_serve(gateway)
        async with (
            aiohttp.ClientSession(headers={"x-request-id": "asked"}) as http,
            http.post(f"{gateway.url}/v1/chat/completions", json=BODY) as answer,
        ):
            assert answer.headers["x-trireme-worker"] == "w1"
        for _ in range(12):  # each connection is taken by either
            async with (
                aiohttp.ClientSession() as http,
                http.get(f"{gateway.url}/debug/route/asked") as answer,
            ):
                assert answer.status == 200
                assert (await answer.json())["attempts"][0]["outcome"] == "done"
        async with (
            aiohttp.ClientSession() as http,
            http.get(f"{gateway.url}/debug/route/nope") as answer,
        ):
            assert answer.status == 404
