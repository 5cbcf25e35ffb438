"""Renders the error taxonomy in OpenAI's dialect. The only place that knows the body's form."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Mapping
from typing import Any, Final

import orjson
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from protocol.errors import TriremeError, quoted

log = logging.getLogger(__name__)

WHOLE_FIELDS: Final = frozenset({"stop", "logit_bias", "prompt", "input", "stop_token_ids"})
"""Fields that are named whole in `param`, whatever is wrong inside them."""

_CLOSING: Final = frozenset({"request_too_large"})
_DISCARDED_BYTES: Final = 32 * 1024 * 1024
_DISCARD_S: Final = 2.0


def error_body(error: TriremeError) -> dict[str, Any]:
    """`{"error": {message, type, param, code}, "error_code": the seed's number}`."""
    field = (error.param or "").partition("[")[0]
    return {
        "error": {
            "message": error.message,
            "type": error.spec.type,
            "param": field if field in WHOLE_FIELDS else error.param,
            "code": error.code if error.spec.public else None,
        },
        "error_code": int(error.spec.number),
    }


def error_response(error: TriremeError, headers: Mapping[str, str] | None = None) -> Response:
    """The error with its true status, and the headers that belong to it."""
    extra = dict(headers or {})
    if error.spec.status == 401:
        extra["WWW-Authenticate"] = "Bearer"
    if error.retry_after_s is not None:
        extra["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if error.code in _CLOSING:
        extra["Connection"] = "close"
    made = _Closing if error.code in _CLOSING else Response
    return made(
        orjson.dumps(error_body(error)),
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
    async def known(_request: Request, error: TriremeError) -> Response:
        return error_response(error)

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        where = f"{request.method} {quoted(request.scope['path'])}"
        if error.status_code == 404:
            return error_response(TriremeError("unknown_url", f"Invalid URL ({where})"))
        if error.status_code == 405:
            message = f"Not allowed to {where}; see the Allow header for the methods."
            return error_response(TriremeError("method_not_supported", message), error.headers)
        return error_response(TriremeError("invalid_request", quoted(str(error.detail))))
