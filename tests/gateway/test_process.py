"""The gateway as a process of its own: running requests end before it does."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from typing import Any

import aiohttp
import pytest

from tests.gateway.fakes import MODEL, FakeController, FakeWorker, record, serving, until

BODY: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}


async def ready(http: aiohttp.ClientSession, url: str) -> None:
    for _ in range(200):
        try:
            async with http.get(url + "/readyz") as answer:
                if answer.status == 200:
                    return
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0.05)
    raise AssertionError("the gateway did not become ready")


@pytest.mark.parametrize("stream", [False, True])
async def test_sigterm_lets_running_requests_end(http: aiohttp.ClientSession, stream: bool) -> None:
    worker, controller = FakeWorker(pause_s=0.15), FakeController()
    async with serving(worker.app()) as at, serving(controller.app()) as fleet:
        controller.set(record("w1", at))
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway", "--port", str(port)),
            *("--controller-address", fleet, "--log-level", "warning"),
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            await ready(http, url)
            async with asyncio.TaskGroup() as group:
                asked = group.create_task(_ask(http, url, stream))
                await until(lambda: worker.requests)
                process.send_signal(signal.SIGTERM)
            status, text = asked.result()
            assert status == 200
            assert ("data: [DONE]" if stream else '"finish_reason":"stop"') in text
            _, stderr = await asyncio.wait_for(process.communicate(), 2)
            assert process.returncode == 0
            assert stderr == b""
            with pytest.raises(aiohttp.ClientConnectorError):
                await http.get(url + "/health")
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def _ask(http: aiohttp.ClientSession, url: str, stream: bool) -> tuple[int, str]:
    async with http.post(url + "/v1/chat/completions", json=BODY | {"stream": stream}) as answer:
        return answer.status, await answer.text()
