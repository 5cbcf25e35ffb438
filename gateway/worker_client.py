"""Calls to workers by the native wire, over one pooled HTTP client.

The border where foreign errors end: what leaves here is a `TriremeError`. A stream is closed when
its generator is closed, and the worker aborts the request when its stream is closed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final, Protocol, TypeVar

import aiohttp
from pydantic import BaseModel
from pydantic_core import from_json

from protocol.errors import TriremeError
from protocol.fleet import WorkerRecord
from protocol.framing import NEWLINE, FrameSplitter
from protocol.generation import (
    Done,
    EmbedRequest,
    EmbedResponse,
    Event,
    Failed,
    GenerateRequest,
    Started,
    TokenizeRequest,
    TokenizeResponse,
    decode_event,
)

log = logging.getLogger(__name__)

_Model = TypeVar("_Model", bound=BaseModel)

LARGE_BODY_BYTES: Final = 1024 * 1024
"""Larger bodies are sent in pieces, so that the event loop is not held up."""
ALIVE_CHECK_S: Final = 1.0
IDLE_CONNECTION_S: Final = 30.0
"""Idle connections are dropped long before a worker drops them (75 s), so none is found dead."""

_OURS_NOT_THE_CLIENTS: Final = frozenset(
    "missing_api_key invalid_api_key unknown_url method_not_supported "
    "unsupported_content_type".split()
)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Bounds in seconds: to connect, to be admitted, between two events of an answer."""

    connect_s: float
    first_event_s: float
    stall_s: float


class WorkerClient(Protocol):
    """What the gateway asks of a worker, by whatever wire."""

    def generate(
        self, worker: WorkerRecord, request: GenerateRequest
    ) -> AsyncGenerator[Event, None]:
        """`Started` first, exactly one terminal event last.

        Raises:
            TriremeError: what kept the worker from answering.
        """
        ...

    async def embed(
        self, worker: WorkerRecord, request: EmbedRequest, timeout_s: float
    ) -> EmbedResponse: ...

    async def count(
        self, worker: WorkerRecord, request: TokenizeRequest, timeout_s: float
    ) -> tuple[int, int]:
        """(tokens of the prompt, the model's context length)."""
        ...


def open_session() -> aiohttp.ClientSession:
    """The process's one client for workers and controllers; needs a running loop."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_CONNECTION_S)
    return aiohttp.ClientSession(
        connector=connector, timeout=aiohttp.ClientTimeout(total=None), auto_decompress=False
    )


class WorkerHttp:
    """POSTs to workers; maps what can go wrong to the taxonomy.

    Args:
        alive: asked while a worker is silent; False ends the wait with `worker_lost`.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        cluster_token: str,
        timeouts: Timeouts,
        alive: Callable[[WorkerRecord], bool],
    ) -> None:
        self.timeouts = timeouts
        self._alive = alive
        self._session = session
        self._headers = {"Content-Type": "application/json"}
        if cluster_token:
            self._headers["Authorization"] = f"Bearer {cluster_token}"

    async def call(self, worker: WorkerRecord, path: str, body: bytes, timeout_s: float) -> bytes:
        """The whole answer of a 200.

        Raises:
            TriremeError: the worker's own, or `worker_unreachable`, `worker_lost`,
                `worker_timeout`.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        with _mapped(deadline):
            async with (
                asyncio.timeout(timeout_s),
                self.open(worker, path, body, timeout_s, deadline) as response,
            ):
                return await response.read()

    @asynccontextmanager
    async def open(
        self, worker: WorkerRecord, path: str, body: bytes, patience_s: float, deadline: float
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A 200 whose body is still to be read; closed with the connection if it is not.

        Args:
            patience_s: longest wait for the answer's headers.
            deadline: loop time at which the request has failed.
        """
        post = self._session.post(
            worker.address + path,
            data=body if len(body) <= LARGE_BODY_BYTES else BytesIO(body),
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self.timeouts.connect_s),
            allow_redirects=False,
        )
        with _mapped(deadline):
            response = await self._answered(worker, post, patience_s, deadline)
        try:
            if response.status != 200:
                with _mapped(deadline):
                    async with asyncio.timeout(patience_s):
                        raise _refusal(worker, response.status, await response.read())
            yield response
        finally:
            response.close()

    async def _answered(
        self,
        worker: WorkerRecord,
        post: Coroutine[Any, Any, aiohttp.ClientResponse],
        patience_s: float,
        deadline: float,
    ) -> aiohttp.ClientResponse:
        """The answer once its headers are there; TimeoutError when that takes too long."""
        loop = asyncio.get_running_loop()
        until = min(loop.time() + patience_s, deadline)
        task = asyncio.create_task(post)
        try:
            while not task.done():
                left_s = until - loop.time()
                if left_s <= 0:
                    raise TimeoutError
                await asyncio.wait((task,), timeout=min(left_s, ALIVE_CHECK_S))
                if not task.done():
                    self._require_alive(worker)
            return task.result()
        except BaseException:
            task.cancel()
            (late,) = await asyncio.gather(task, return_exceptions=True)
            if isinstance(late, aiohttp.ClientResponse):
                late.close()
            raise

    def _require_alive(self, worker: WorkerRecord) -> None:
        if not self._alive(worker):
            raise TriremeError("worker_lost", "The worker left the fleet.")

    async def chunks(
        self,
        worker: WorkerRecord,
        response: aiohttp.ClientResponse,
        patience_s: Callable[[], float],
        deadline: float,
    ) -> AsyncGenerator[bytes, None]:
        """The body as it comes.

        Args:
            patience_s: longest wait for the next piece, asked anew for each.
            deadline: loop time at which the request has failed.
        """
        loop = asyncio.get_running_loop()
        while True:
            stalled = loop.time() + patience_s()
            data = None
            while data is None:
                left_s = min(stalled, deadline) - loop.time()
                if left_s <= 0:
                    raise _too_slow(loop.time() >= deadline)
                with _mapped(deadline):
                    try:
                        async with asyncio.timeout(min(left_s, ALIVE_CHECK_S)):
                            data = await response.content.readany()
                    except TimeoutError:
                        self._require_alive(worker)
            if not data:
                return
            yield data


class NativeClient:
    """Workers of this stack."""

    def __init__(self, http: WorkerHttp) -> None:
        self._http = http

    async def generate(
        self, worker: WorkerRecord, request: GenerateRequest
    ) -> AsyncGenerator[Event, None]:
        timeouts = self._http.timeouts
        limit_s = request.deadline_s or float("inf")
        deadline = asyncio.get_running_loop().time() + limit_s
        patience_s = timeouts.first_event_s
        splitter = FrameSplitter(NEWLINE)
        body = _json(request)
        async with (
            self._http.open(
                worker, "/native/generate", body, timeouts.first_event_s, deadline
            ) as response,
            aclosing(self._http.chunks(worker, response, lambda: patience_s, deadline)) as chunks,
        ):
            async for chunk in chunks:
                for event in _events(splitter, chunk):
                    yield event
                    if isinstance(event, Done | Failed):
                        return
                    # an admitted request may wait in the queue; a running one may not pause long
                    started = isinstance(event, Started)
                    patience_s = float("inf") if started else timeouts.stall_s
        raise TriremeError("worker_lost", "The worker's answer ended early.")

    async def embed(
        self, worker: WorkerRecord, request: EmbedRequest, timeout_s: float
    ) -> EmbedResponse:
        body = await self._http.call(worker, "/native/embed", _json(request), timeout_s)
        return _answer(EmbedResponse, body)

    async def count(
        self, worker: WorkerRecord, request: TokenizeRequest, timeout_s: float
    ) -> tuple[int, int]:
        body = await self._http.call(worker, "/native/tokenize", _json(request), timeout_s)
        answer = _answer(TokenizeResponse, body)
        return len(answer.ids), answer.context_length


def _json(message: BaseModel) -> bytes:
    return message.model_dump_json(exclude_defaults=True).encode()


def _events(splitter: FrameSplitter, chunk: bytes) -> list[Event]:
    try:
        return [decode_event(line) for line in splitter.feed(chunk)]
    except ValueError as error:
        log.error("a worker sent what is no event: %s", error)
        raise TriremeError("worker_lost", "The worker's answer is malformed.") from error


def _answer(model: type[_Model], body: bytes) -> _Model:
    try:
        return model.model_validate_json(body)
    except ValueError as error:
        log.error("a worker's %s is malformed: %s", model.__name__, error)
        raise TriremeError("worker_lost", "The worker's answer is malformed.") from error


@contextmanager
def _mapped(deadline: float = float("inf")) -> Iterator[None]:
    """aiohttp's errors in our terms; a timeout after the loop time `deadline` is the request's."""
    try:
        yield
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
        raise TriremeError("worker_unreachable", "The worker cannot be reached.") from error
    except TimeoutError as error:
        raise _too_slow(asyncio.get_running_loop().time() >= deadline) from error
    except (aiohttp.ClientError, OSError) as error:
        raise TriremeError("worker_lost", "The connection to the worker broke.") from error


def _too_slow(deadline_passed: bool) -> TriremeError:
    if deadline_passed:
        return TriremeError("deadline_exceeded", "The request took longer than its time limit.")
    return TriremeError("worker_timeout", "The worker did not answer in time.")


def _refusal(worker: WorkerRecord, status: int, body: bytes) -> TriremeError:
    """The error in a worker's answer; what is wrong between the tiers is not the client's."""
    try:
        error = TriremeError.from_wire(from_json(body)["error"])
    except (ValueError, KeyError, TypeError, AttributeError):
        code = {421: "wrong_instance", 503: "overloaded"}.get(status, "internal_error")
        error = TriremeError(code, "The worker could not answer.")
    if status in (401, 403, 404, 405) or error.code in _OURS_NOT_THE_CLIENTS:
        log.error("worker %s refused the gateway: %d %s", worker.instance_id, status, error.code)
        return TriremeError("worker_unreachable", "The worker refused the gateway.")
    return error
