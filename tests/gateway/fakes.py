"""Scripted peers of the gateway on real sockets: workers, a controller, and the gateway itself."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from aiohttp import web
from fastapi import FastAPI
from pydantic_core import from_json, to_json

from gateway.app import create_app
from gateway.config import GatewaySettings
from protocol.errors import TriremeError
from protocol.fleet import FleetSnapshot, Load, ModelRecord, WorkerRecord
from protocol.generation import (
    Delta,
    Done,
    EmbedResponse,
    Event,
    Failed,
    FinishReason,
    GenerateRequest,
    Prompt,
    Started,
    TokenLogprob,
    encode_event,
)
from trireme.service.http_head import BoundedHttp

MODEL = "demo"
WORDS = ("Hello", " there", ", how", " are", " you", "?")


def record(
    instance_id: str = "w1", address: str = "http://127.0.0.1:1", **fields: Any
) -> WorkerRecord:
    """A ready native worker of the model `demo`, unless the fields say otherwise."""
    defaults: dict[str, Any] = {
        "models": (ModelRecord(name=MODEL, digest="d" * 64, context_length=2048, engine="sim"),),
        "load": Load(capacity=8),
    }
    return WorkerRecord(instance_id=instance_id, address=address, **(defaults | fields))


def logprob(token_id: int, text: str, count: int) -> TokenLogprob:
    top = [
        TokenLogprob(token_id + i, text + "*" * i, list(text.encode()), -0.5 - i)
        for i in range(count)
    ]
    return TokenLogprob(token_id, text, list(text.encode()), -0.5, top)


def scripted(request: GenerateRequest, instance_id: str) -> list[Event]:
    """What a healthy fake answers: the words, as many as `max_tokens`, for each choice.

    Of an answer that is resumed, those behind the tokens that it has.
    """
    sampling = request.sampling
    words = WORDS[: sampling.max_tokens or len(WORDS)]
    prompt = request.prompt if request.prompt is not None else str(request.prompt_ids or "")
    events: list[Event] = [Started(7, instance_id, "d" * 64)]
    begun = [len(choice.ids) for choice in request.resume or ()] or [0] * sampling.n
    if (request.echo or sampling.prompt_logprobs is not None) and not request.resume:
        count = sampling.prompt_logprobs or sampling.logprobs or 0
        tokens = [TokenLogprob(1, prompt[:1], [0], None), logprob(2, prompt[1:], count)]
        events.append(Prompt([1, 2], prompt, tokens))
    reason: FinishReason = "length" if len(words) < len(WORDS) else "stop"
    for pos, word in enumerate(words):
        for index in range(sampling.n):
            if pos < begun[index]:
                continue
            found = None
            if sampling.logprobs is not None:
                found = [logprob(100 + pos, word, sampling.logprobs)]
            last = pos == len(words) - 1
            events.append(Delta(index, pos, [100 + pos], word, found, reason if last else None))
    events.append(Done(7, len(words) * sampling.n, cached_tokens=3))
    return events


@dataclass
class FakeWorker:
    """A native worker whose behaviour a test sets.

    Attributes:
        die_after: abort the connection after so many events; 0 before any answer.
        hang_after: send so many events, then nothing until `killed`, which ends the connection.
        refuse: answer with this error instead of 200.
        fail_after: (number of events, error): then a `Failed` event.
        pause_s: before each event.
    """

    instance_id: str = "w1"
    token: str = ""
    die_after: int | None = None
    hang_after: int | None = None
    refuse: TriremeError | None = None
    fail_after: tuple[int, TriremeError] | None = None
    pause_s: float = 0.0
    script: Callable[[GenerateRequest, str], list[Event]] = scripted
    requests: list[GenerateRequest] = field(default_factory=list)
    bodies: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    running: int = 0
    aborted: int = 0
    killed: asyncio.Event = field(default_factory=asyncio.Event)
    address: str = ""

    def app(self) -> web.Application:
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/native/generate", self._generate)
        app.router.add_post("/native/embed", self._embed)
        app.router.add_post("/native/tokenize", self._tokenize)
        app.router.add_get("/native/describe", self._describe)
        return app

    async def _describe(self, _request: web.Request) -> web.Response:
        body = record(self.instance_id).model_dump_json()
        return web.Response(text=body, content_type="application/json")

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            error = TriremeError("invalid_api_key", "The cluster token is wrong.")
            return _error(error)
        wanted = GenerateRequest.model_validate_json(await request.read())
        self.requests.append(wanted)
        if self.refuse is not None:
            return _error(self.refuse)
        self.running += 1
        done = False
        try:
            response = web.StreamResponse()
            for number, event in enumerate(self.script(wanted, self.instance_id)):
                if self.fail_after is not None and number == self.fail_after[0]:
                    event = Failed.of(self.fail_after[1])
                if number == self.die_after:
                    await asyncio.sleep(0.03)  # what was sent arrives before the reset
                    _abort(request)
                    return response
                if number == self.hang_after:
                    await self.killed.wait()
                    _abort(request)
                    return response
                if self.pause_s:
                    await asyncio.sleep(self.pause_s)
                if number == 0:
                    await response.prepare(request)
                await response.write(encode_event(event))
                if isinstance(event, Failed):
                    break
            await response.write_eof()
            done = True
            return response
        finally:
            self.running -= 1
            self.aborted += not done

    async def _embed(self, request: web.Request) -> web.Response:
        body = from_json(await request.read())
        self.bodies.append(("embed", body))
        if self.refuse is not None:
            return _error(self.refuse)
        vector = [0.5, -0.25, 0.125, 1.0][: body.get("dimensions") or 4]
        b64 = b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
        count = len(body["inputs"])
        answer = EmbedResponse(
            embeddings_b64=[b64] * count, dimensions=len(vector), prompt_tokens=3 * count
        )
        return web.Response(body=answer.model_dump_json(), content_type="application/json")

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = from_json(await request.read())
        self.bodies.append(("tokenize", body))
        texts = [turn["content"] for turn in body.get("messages", ())] or [body["prompt"]]
        ids = list(range(sum(len(text.split()) for text in texts)))
        return web.json_response({"ids": ids, "context_length": 2048})


def _abort(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


def _error(error: TriremeError) -> web.Response:
    return web.Response(
        status=error.spec.status,
        body=to_json({"error": error.to_wire()}),
        content_type="application/json",
    )


@dataclass
class FakeController:
    """Answers `/fleet` long polls from a snapshot that a test replaces.

    Attributes:
        seen: the version that each gateway asked for the successor of. goodbyes: who has left.
    """

    workers: tuple[WorkerRecord, ...] = ()
    left: tuple[str, ...] = ()
    complete: bool = True
    epoch: str = "e1"
    version: int = 1
    token: str = ""
    address: str = ""
    polls: int = 0
    seen: dict[str, int] = field(default_factory=dict)
    goodbyes: list[str] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/fleet", self._fleet)
        app.router.add_delete("/fleet/gateways/{id}", self._goodbye)
        return app

    async def _goodbye(self, request: web.Request) -> web.Response:
        self.goodbyes.append(request.match_info["id"])
        return web.Response(status=204)

    def set(self, *workers: WorkerRecord, left: tuple[str, ...] = ()) -> None:
        self.workers, self.left = workers, left
        self.version += 1
        self.changed.set()
        self.changed = asyncio.Event()

    async def _fleet(self, request: web.Request) -> web.Response:
        self.polls += 1
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.Response(status=401)
        query = request.query
        self.seen[query["gateway"]] = int(query.get("after", 0))
        if query.get("epoch") == self.epoch and int(query["after"]) >= self.version:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(float(query["wait_s"])):
                    await self.changed.wait()
        snapshot = FleetSnapshot(
            epoch=self.epoch,
            version=self.version,
            complete=self.complete,
            workers=self.workers,
            left=self.left,
        )
        return web.Response(body=snapshot.model_dump_json(), content_type="application/json")


@contextlib.asynccontextmanager
async def serving(app: web.Application) -> AsyncIterator[str]:
    """The app on a free port; gives its base URL."""
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.01)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


class _QuietServer(uvicorn.Server):
    """Leaves signals alone and stops without waiting for a tick."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.stop = asyncio.Event()

    async def main_loop(self) -> None:
        await self.stop.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, without its pauses of a tenth of a second."""
        for server in self.servers:
            server.close()
        for listener in sockets or ():
            listener.close()
        state = self.server_state
        for connection in list(state.connections):
            connection.shutdown()
        await until(lambda: not state.connections and not state.tasks)
        await self.lifespan.shutdown()

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


@contextlib.asynccontextmanager
async def serving_gateway(app: FastAPI) -> AsyncIterator[str]:
    """A gateway's app under uvicorn on a free port; gives its base URL."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    listener.setblocking(False)
    config = uvicorn.Config(
        app,
        http=BoundedHttp,
        log_config=None,
        access_log=False,
        lifespan="on",
        timeout_graceful_shutdown=2,
    )
    server = _QuietServer(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await until(lambda: server.started)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.stop.set()
        await task


@dataclass
class Stack:
    """A gateway in front of fakes."""

    url: str
    app: FastAPI
    controller: FakeController
    workers: list[FakeWorker]


@contextlib.asynccontextmanager
async def stack(
    *workers: FakeWorker, usage_db: Path | None = None, **settings: Any
) -> AsyncIterator[Stack]:
    """Workers, a controller that lists them, and a gateway that has seen them."""
    async with contextlib.AsyncExitStack() as cleanup:
        for worker in workers:
            worker.address = await cleanup.enter_async_context(serving(worker.app()))
        controller = FakeController()
        controller.set(*(record(w.instance_id, w.address) for w in workers))
        controller.address = await cleanup.enter_async_context(serving(controller.app()))

        def made() -> FastAPI:
            given = GatewaySettings(controller_address=(controller.address,), port=0, **settings)
            return create_app(given, usage_db=usage_db)

        app = await asyncio.to_thread(made)  # it may read a file
        url = await cleanup.enter_async_context(serving_gateway(app))
        await until(lambda: app.state.gateway.view.snapshot.synced)
        yield Stack(url, app, controller, list(workers))


async def until(condition: Callable[[], object], timeout_s: float = 5.0) -> None:
    """Wait for a condition; fails the test when it does not come true."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - conditions are of any kind
            await asyncio.sleep(0.005)
