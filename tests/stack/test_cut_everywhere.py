"""A worker is lost behind every position of a long stream: the client sees the unbroken answer.

Gateway and workers are the real apps in this test's event loop; what is between them cuts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import orjson
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.app import create_app as create_gateway
from gateway.config import GatewaySettings
from protocol.fleet import WorkerRecord
from tests.gateway.fakes import FakeController, serving, serving_gateway, until
from trireme.service.server import ExitRequest
from worker.app import create_app as create_worker
from worker.config import Settings

TOKENS = 256
BODY: dict[str, Any] = {
    "model": "sim",
    "messages": [{"role": "user", "content": "cut me anywhere"}],
    "seed": 3,
    "max_tokens": TOKENS,
}


class Cut(Exception):
    """Ends a response without its end, as the death of its process does."""


class CutsFirstAttempts:
    """Passes a worker's answers on; the first attempt at a request loses its worker.

    Attributes:
        after: so many deltas of the next answer arrive; None cuts nothing.
        cuts: how often it has cut.
    """

    def __init__(self) -> None:
        self.after: int | None = None
        self.cuts = 0

    def around(self, app: ASGIApp) -> ASGIApp:
        async def cutting(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http" and scope["path"] == "/native/generate":
                after, self.after = self.after, None
                if after is not None:
                    send = self._cut_behind(after + 1, send)  # `Started` comes before the deltas
            await app(scope, receive, send)

        return cutting

    def _cut_behind(self, events: int, send: Send) -> Send:
        left = events

        async def counting(message: Message) -> None:
            nonlocal left
            lines = message.get("body", b"").splitlines(keepends=True)
            if message["type"] != "http.response.body" or len(lines) <= left:
                left -= len(lines)
                await send(message)
                return
            if left:
                await send({**message, "body": b"".join(lines[:left]), "more_body": True})
                await asyncio.sleep(0.001)  # what was sent arrives before the end
            self.cuts += 1
            raise Cut

        return counting


@contextlib.asynccontextmanager
async def stack(cutter: CutsFirstAttempts) -> AsyncIterator[str]:
    """A gateway over two simulated workers; gives its address."""
    async with contextlib.AsyncExitStack() as cleanup:
        records = []
        for _ in range(2):
            settings = Settings(engine="sim", no_register=True, sim_tokens=TOKENS)
            made = create_worker(settings, address="http://127.0.0.1:1", exit_request=ExitRequest())
            url = await cleanup.enter_async_context(serving_gateway(cutter.around(made.app)))
            await until(lambda made=made: made.runtime.state == "ready")
            records.append(
                WorkerRecord(
                    instance_id=made.runtime.instance_id,
                    address=url,
                    models=made.runtime.model_records(),
                )
            )
        controller = FakeController()
        controller.set(*records)
        address = await cleanup.enter_async_context(serving(controller.app()))
        gateway = create_gateway(GatewaySettings(controller_address=(address,), port=0))
        url = await cleanup.enter_async_context(serving_gateway(gateway))
        await until(lambda: gateway.state.gateway.view.snapshot.synced)
        yield url


async def streamed(http: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    """All that a stream gave: its text, the finish reason, the usage."""
    body = {**BODY, "stream": True, "stream_options": {"include_usage": True}}
    found: dict[str, Any] = {"text": "", "finish": None, "ids": set()}
    async with http.post(url + "/v1/chat/completions", json=body) as answer:
        assert answer.status == 200
        lines = [line async for line in answer.content if line.startswith(b"data:")]
    assert lines.pop() == b"data: [DONE]\n"
    for line in lines:
        chunk = orjson.loads(line[5:])
        assert "error" not in chunk, chunk
        found["ids"].add((chunk["id"], chunk["created"], chunk["system_fingerprint"]))
        found["usage"] = chunk["usage"]
        for choice in chunk["choices"]:
            found["text"] += choice["delta"].get("content", "")
            found["finish"] = choice["finish_reason"] or found["finish"]
    assert len(found.pop("ids")) == 1, "id, created and fingerprint stay"
    return found


async def test_a_stream_that_is_cut_at_any_position_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL)
    cutter = CutsFirstAttempts()
    async with stack(cutter) as url, aiohttp.ClientSession() as http:
        whole = await streamed(http, url)
        assert whole["usage"]["completion_tokens"] == len(whole["text"].split()) == TOKENS
        for position in range(TOKENS):
            cutter.after = position
            assert await streamed(http, url) == whole, f"cut behind {position} tokens"
        assert cutter.cuts == TOKENS
        async with http.get(url + "/metrics") as shown:
            metrics = await shown.text()
    why = '{model="sim",reason="worker_lost"}'
    assert f"trireme_gateway_retries_total{why} 1.0" in metrics, "nothing had been sent"
    assert f"trireme_gateway_resumed_total{why} {TOKENS - 1}.0" in metrics
    assert "trireme_gateway_requests_in_flight 0.0" in metrics
