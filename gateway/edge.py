"""What every request passes before a route: its id, the catch-all for faults, the checks.

Pure ASGI, so that streams and disconnects pass through untouched; each layer costs at every step of
a request, so what only lets through or refuses is a check, and no layer. Knows no route but the
open health paths.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterable
from itertools import chain
from time import perf_counter
from typing import Any, Final, TypeAlias

from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.errors import error_response
from gateway.keys import KeyRing
from gateway.trail import Trail
from protocol.errors import TriremeError
from trireme.service import logs
from trireme.service.auth import bearer
from trireme.service.catch_all import fault
from trireme.service.health import HEALTH_PATHS
from trireme.service.ids import short_id

log = logging.getLogger(__name__)

MAX_HEADER_BYTES: Final = 64 * 1024

WORKER_HEADER: Final = b"x-trireme-worker"
ATTEMPTS_HEADER: Final = b"x-trireme-attempts"

Headers: TypeAlias = list[tuple[bytes, bytes]]
Check: TypeAlias = Callable[[Scope], Response | None]
"""Says how a request is refused, None lets it pass; may note in the scope's state who calls."""

_HOST: Final = re.compile(r"[A-Za-z0-9._~%:\[\]-]*")
_ID: Final = re.compile(r"[A-Za-z0-9._:+/=@-]{1,128}")


def header(scope: Scope, name: bytes) -> str | None:
    """The first header of that lower-case name; bytes that are no UTF-8 are kept as surrogates."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value).decode("utf-8", "surrogateescape")
    return None


def request_id_of(given: str | None) -> str:
    """The client's id when it is short and plain, else a new one."""
    if given is not None and _ID.fullmatch(given):
        return given
    return "req-" + short_id()


class RequestContext:
    """Outermost: sets the request id, echoes it, answers 500 for a fault, reports the outcome.

    Args:
        headers: what else the answer to a request of this scope has.
        finished: called once a request with (scope, status, seconds); status 499 means that the
            client was gone before an answer.
        closing: whether connections end with their next answer, since this gateway drains.
    """

    def __init__(
        self,
        app: ASGIApp,
        headers: Callable[[Scope], Headers],
        finished: Callable[[Scope, int, float], None],
        closing: Callable[[], bool],
    ) -> None:
        self._app = app
        self._headers = headers
        self._finished = finished
        self._closing = closing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = request_id_of(header(scope, b"x-request-id"))
        scope.setdefault("state", {})["request_id"] = request_id
        token = logs.request_id.set(request_id)
        status, begun = 499, perf_counter()
        told = request_id.encode()
        id_headers = ((b"x-request-id", told), (b"request-id", told))  # the second is Anthropic's

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = self._headers(scope)
                message["headers"] = [*message.get("headers", ()), *id_headers, *own]
                if self._closing():
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("request failed")
            if status != 499:
                raise
            await error_response(fault("gateway"), scope=scope)(scope, receive, send_with_id)
        finally:
            self._finished(scope, status, perf_counter() - begun)
            logs.request_id.reset(token)


def route_headers(scope: Scope) -> Headers:
    """The headers of an answer that a worker took part in."""
    trail: Trail | None = scope["state"].get("trail")
    if trail is None or not trail.tries:
        return []
    return [(WORKER_HEADER, trail.last.encode()), (ATTEMPTS_HEADER, b"%d" % trail.tries)]


class CrossOrigin:
    """CORS for requests that tell an `Origin`, as all do that it is about.

    Args:
        fields: what Starlette's middleware takes.
    """

    def __init__(self, app: ASGIApp, **fields: Any) -> None:
        self._app = app
        self._checked = CORSMiddleware(app, **fields)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app if header(scope, b"origin") is None else self._checked
        await app(scope, receive, send)


class Checks:
    """Refuses what one of the checks refuses; the first that does counts."""

    def __init__(self, app: ASGIApp, checks: Iterable[Check]) -> None:
        self._app = app
        self._checks = tuple(checks)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # there is no websocket route
            await send({"type": "websocket.close", "code": 1008})
            return
        for check in self._checks:
            refusal = check(scope)
            if refusal is not None:
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)


def check_headers(scope: Scope) -> Response | None:
    """Refuses headers that are too many bytes, or a Host that is none, and closes the connection.

    It comes after `Authentication`, so that a key of any length is answered as a wrong key.
    """
    headers = scope["headers"]
    if sum(map(len, chain.from_iterable(headers))) + 4 * len(headers) > MAX_HEADER_BYTES:
        wrong = f"The request's headers exceed the limit of {MAX_HEADER_BYTES} bytes."
    elif not _HOST.fullmatch(header(scope, b"host") or ""):
        wrong = "The request's Host header is malformed."
    else:
        return None
    error = TriremeError("invalid_request", wrong)
    return error_response(error, {"Connection": "close"}, scope=scope)


class Authentication:
    """A check that denies by default: only the health paths are open when there are keys.

    A key comes as `Authorization: Bearer`, or as Anthropic's clients send it, as `x-api-key`. Whose
    it is stands in the scope's state as `caller`.
    """

    def __init__(self, keys: KeyRing) -> None:
        self._keys = keys

    def __call__(self, scope: Scope) -> Response | None:
        if scope["path"] in HEALTH_PATHS:
            return None
        key = bearer(header(scope, b"authorization")) or header(scope, b"x-api-key") or None
        caller = self._keys.find(key)
        if caller is not None:
            scope["state"]["caller"] = caller
            return None
        if key is None:
            message = "You didn't provide an API key: send it as 'Authorization: Bearer <key>'."
            return error_response(TriremeError("missing_api_key", message), scope=scope)
        error = TriremeError("invalid_api_key", "Incorrect API key provided.")
        return error_response(error, scope=scope)
