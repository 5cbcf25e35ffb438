"""Renders the error taxonomy for clients: in OpenAI's form, and in Anthropic's on its routes.

The only place that knows the bodies' forms.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import orjson
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from protocol.errors import TriremeError, quoted

log = logging.getLogger(__name__)

ANTHROPIC_PATHS: Final = "/v1/messages"
"""Below it errors have Anthropic's form."""

_ENTRY: Final = re.compile(r"(stop|prompt|input|stop_token_ids|stop_sequences)\[\d+\]")
"""Lists that are named whole in `param`, whichever entry is at fault."""

_ANTHROPIC_TYPES: Final[Mapping[int, str]] = MappingProxyType(
    {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        413: "request_too_large",
        429: "rate_limit_error",
        504: "timeout_error",
    }
)

_OVERLOADS: Final = frozenset({"overloaded", "draining"})
_CLOSING: Final = frozenset({"request_too_large"})
_DISCARDED_BYTES: Final = 32 * 1024 * 1024
_DISCARD_S: Final = 2.0


def error_body(error: TriremeError) -> dict[str, Any]:
    """`{"error": {message, type, param, code}, "error_code": FastChat's number}`."""
    return {
        "error": {
            "message": error.message,
            "type": error.spec.type,
            "param": error.param and named_field(error.param),
            "code": error.code if error.spec.public else error.spec.shown_as,
        },
        "error_code": int(error.spec.number),
    }


def anthropic_error_body(error: TriremeError) -> dict[str, Any]:
    """`{"type": "error", "error": {type, message}}`; the message names the field at fault."""
    status = error.spec.status
    kind = _ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    if error.code in _OVERLOADS:
        kind = "overloaded_error"
    message = error.message
    if error.param and error.param not in message:
        message = f"{error.param}: {message}"
    return {"type": "error", "error": {"type": kind, "message": message}}


def named_field(param: str) -> str:
    """What `param` shows: `stop[3]` is `stop`."""
    entry = _ENTRY.fullmatch(param)
    return entry[1] if entry else param


def error_response(
    error: TriremeError, headers: Mapping[str, str] | None = None, *, scope: Scope | None = None
) -> Response:
    """The error with its true status, and the headers that belong to it.

    Args:
        scope: of the request, whose path tells the dialect; none is OpenAI's. Its state gets the
            `error_code`, for the metrics and the log.
    """
    body = error_body(error)
    if scope is not None:
        state = scope.setdefault("state", {})
        state["error_code"] = error.code
        if scope["path"].startswith(ANTHROPIC_PATHS):
            body = {**anthropic_error_body(error), "request_id": state["request_id"]}
    extra = dict(headers or {})
    if error.spec.status == 401:
        extra["WWW-Authenticate"] = "Bearer"
    if error.retry_after_s is not None:
        extra["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if not error.spec.passes:
        extra["x-should-retry"] = "false"  # the clients of OpenAI and Anthropic obey it
    if error.code in _CLOSING:
        extra["Connection"] = "close"
    made = _Closing if error.code in _CLOSING else Response
    return made(
        orjson.dumps(body),
        status_code=error.spec.status,
        media_type="application/json",
        headers=extra,
    )


class _Closing(Response):
    """Answers at once, then reads on for a while before the connection is closed.

    A client that still writes when we close would see a reset instead of the answer.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **start})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        # asking for more would make the server tell the client to send its body after all
        if not any(name == b"expect" for name, _ in scope["headers"]):
            await _discard(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _discard(receive: Receive) -> None:
    left = _DISCARDED_BYTES
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DISCARD_S):
            while left > 0:
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
                left -= len(message.get("body", b""))


def install_error_handlers(app: FastAPI) -> None:
    """Every failure of a route, and every request without one, gets the same body."""

    @app.exception_handler(TriremeError)
    async def known(request: Request, error: TriremeError) -> Response:
        return error_response(error, scope=request.scope)

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        where = f"{request.method} {quoted(request.scope['path'])}"
        if error.status_code == 404:
            known_error = TriremeError("unknown_url", f"Invalid URL ({where})")
            return error_response(known_error, scope=request.scope)
        if error.status_code == 405:
            message = f"Not allowed to {where}; see the Allow header for the methods."
            known_error = TriremeError("method_not_supported", message)
            return error_response(known_error, error.headers, scope=request.scope)
        known_error = TriremeError("invalid_request", quoted(str(error.detail)))
        return error_response(known_error, scope=request.scope)
