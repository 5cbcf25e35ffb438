"""Calls to workers by the native wire.

The border where foreign errors end: what leaves here is a `TriremeError`. A stream is closed when
its generator is closed, and the worker aborts the request when its stream is closed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Final, Protocol, Self, TypeAlias, TypeVar

import aiohttp
from pydantic import BaseModel
from pydantic_core import from_json

from gateway.http_client import IDLE_CONNECTION_S, Answer, Broken, ConnectFailed, HttpPool
from protocol.errors import TriremeError
from protocol.fleet import WorkerRecord
from protocol.framing import NEWLINE, FrameSplitter
from protocol.generation import (
    DetokenizeRequest,
    Done,
    EmbedRequest,
    EmbedResponse,
    Event,
    Failed,
    GenerateRequest,
    ScoreRequest,
    Started,
    TokenizeRequest,
    TokenizeResponse,
    decode_event,
)

log = logging.getLogger(__name__)

_Model = TypeVar("_Model", bound=BaseModel)

Question: TypeAlias = TokenizeRequest | DetokenizeRequest | ScoreRequest
_ROUTES: Final[dict[type[BaseModel], str]] = {
    TokenizeRequest: "/native/tokenize",
    DetokenizeRequest: "/native/detokenize",
    ScoreRequest: "/native/score",
}

_OURS_NOT_THE_CLIENTS: Final = frozenset(
    "missing_api_key invalid_api_key unknown_url method_not_supported "
    "unsupported_content_type".split()
)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Bounds in seconds: to be admitted, between two events of an answer, and of silence.

    A native worker that has no event to send shows every two seconds that it lives.
    """

    first_event_s: float
    stall_s: float
    silence_s: float


class WorkerClient(Protocol):
    """What the gateway asks of a worker, by whatever wire."""

    def generate(
        self, worker: WorkerRecord, request: GenerateRequest
    ) -> AsyncGenerator[list[Event], None]:
        """The events as they come, those that come together in one list, which is never empty.

        `Started` is the first, exactly one terminal event the last.

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

    async def call(
        self, worker: WorkerRecord, request: Question, answer: type[_Model], timeout_s: float
    ) -> _Model:
        """A worker's `answer` to a question that only the native wire carries."""
        ...


def open_session() -> aiohttp.ClientSession:
    """The process's HTTP client for controllers and probes; needs a running loop."""
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
        pool: HttpPool,
        timeouts: Timeouts,
        alive: Callable[[WorkerRecord], bool],
    ) -> None:
        self.timeouts = timeouts
        self._alive = alive
        self._pool = pool

    async def call(self, worker: WorkerRecord, path: str, body: bytes, timeout_s: float) -> bytes:
        """The whole answer of a 200.

        Raises:
            TriremeError: the worker's own, or `worker_unreachable`, `worker_lost`,
                `worker_timeout`.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        with await self.open(worker, path, body, timeout_s, deadline) as reply:
            pieces = [piece async for piece in reply]
        return b"".join(pieces)

    async def open(
        self, worker: WorkerRecord, path: str, body: bytes, patience_s: float, deadline: float
    ) -> Reply:
        """A 200 whose body is still to be read, and which is to be closed.

        Args:
            patience_s: longest wait for the answer's headers, and for each piece of its body
                until the reader says otherwise.
            deadline: loop time at which the request has failed.
        """

        def gone() -> TriremeError | None:
            if self._alive(worker):
                return None
            return TriremeError("worker_lost", "The worker left the fleet.")

        try:
            answer = await self._pool.post(worker.address, path, body)
        except ConnectFailed as error:
            # a certificate that is not trusted, too: an operator needs the reason
            log.warning("worker %s cannot be reached: %s", worker.short_id, error)
            raise TriremeError("worker_unreachable", "The worker cannot be reached.") from error
        reply = Reply(answer, deadline, gone)
        reply.be_patient(patience_s)
        try:
            if await answer.headers() == 200:
                return reply
            raise _refusal(worker, answer.status, await answer.whole())
        except BaseException as error:
            answer.close()
            if isinstance(error, Broken | TimeoutError):
                raise _in_our_terms(error, deadline) from error
            raise


class Reply:
    """The body of a 200 as it comes: iterate it, inside `with`, which closes it."""

    def __init__(
        self, answer: Answer, deadline: float, gone: Callable[[], TriremeError | None]
    ) -> None:
        self._answer = answer
        self._deadline = deadline
        self._gone = gone

    def be_patient(self, patience_s: float) -> None:
        """Set the longest wait for a piece from now on."""
        self._answer.watch(patience_s, self._deadline, self._gone)

    def enough(self) -> None:
        """What is still to come does not matter; it is not waited for."""
        self._answer.wanted = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._answer.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        try:
            piece = await self._answer.read()
        except (Broken, TimeoutError) as error:
            raise _in_our_terms(error, self._deadline) from error
        if not piece:
            raise StopAsyncIteration
        return piece


class NativeClient:
    """Workers of this stack."""

    def __init__(self, http: WorkerHttp) -> None:
        self._http = http

    async def generate(
        self, worker: WorkerRecord, request: GenerateRequest
    ) -> AsyncGenerator[list[Event], None]:
        timeouts = self._http.timeouts
        limit_s = request.deadline_s or float("inf")
        deadline = asyncio.get_running_loop().time() + limit_s
        splitter = FrameSplitter(NEWLINE)
        opened = self._http.open(
            worker, "/native/generate", _json(request), timeouts.first_event_s, deadline
        )
        running = False
        quiet_since: float | None = None
        with await opened as reply:
            reply.be_patient(timeouts.silence_s)
            async for chunk in reply:
                events = _events(splitter, chunk)
                if not events:
                    # an admitted request may wait in the queue; a running one may not pause long
                    now = asyncio.get_running_loop().time()
                    quiet_since = quiet_since or now
                    if running and now - quiet_since >= timeouts.stall_s:
                        raise TriremeError("worker_timeout", "The worker's answer has stalled.")
                    continue
                quiet_since = None
                last = events[-1]
                if isinstance(last, Done | Failed):
                    reply.enough()
                    yield events
                    return
                if not running and not isinstance(last, Started):
                    running = True
                    reply.be_patient(min(timeouts.silence_s, timeouts.stall_s))
                yield events
        raise TriremeError("worker_lost", "The worker's answer ended early.")

    async def embed(
        self, worker: WorkerRecord, request: EmbedRequest, timeout_s: float
    ) -> EmbedResponse:
        body = await self._http.call(worker, "/native/embed", _json(request), timeout_s)
        return _answer(EmbedResponse, body)

    async def count(
        self, worker: WorkerRecord, request: TokenizeRequest, timeout_s: float
    ) -> tuple[int, int]:
        answer = await self.call(worker, request, TokenizeResponse, timeout_s)
        return len(answer.ids), answer.context_length

    async def call(
        self, worker: WorkerRecord, request: Question, answer: type[_Model], timeout_s: float
    ) -> _Model:
        path, body = _ROUTES[type(request)], _json(request)
        return _answer(answer, await self._http.call(worker, path, body, timeout_s))


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


def _in_our_terms(error: Broken | TimeoutError, deadline: float) -> TriremeError:
    """A timeout after the loop time `deadline` is the request's, one before it the worker's."""
    if isinstance(error, Broken):
        return TriremeError("worker_lost", "The connection to the worker broke.")
    if asyncio.get_running_loop().time() >= deadline:
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
