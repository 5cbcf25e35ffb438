"""Renders the error taxonomy in OpenAI's dialect. The only place that knows the body's form."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, Final

import orjson
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from protocol.errors import TriremeError, quoted

log = logging.getLogger(__name__)

WHOLE_FIELDS: Final = frozenset({"stop", "logit_bias", "prompt", "input", "stop_token_ids"})
"""Fields that are named whole in `param`, whatever is wrong inside them."""

_CLOSING: Final = frozenset({"request_too_large"})


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
    return Response(
        orjson.dumps(error_body(error)),
        status_code=error.spec.status,
        media_type="application/json",
        headers=extra,
    )


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
