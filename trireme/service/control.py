"""The HTTP edge of the control routes of controller and worker.

Cluster token, body limits, parsing once, errors as JSON; clients of the gateway get OpenAI's
dialect instead.
"""

from __future__ import annotations

import logging
import math
from typing import Final, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from protocol.errors import TriremeError, quoted
from trireme.service.auth import TokenSet, bearer
from trireme.service.catch_all import CatchAll
from trireme.service.health import HEALTH_PATHS
from trireme.service.openapi import Described
from trireme.service.streaming import whole_body

log = logging.getLogger(__name__)

MAX_CONTROL_BODY_BYTES: Final = 256 * 1024

_Model = TypeVar("_Model", bound=BaseModel)


class ControlError(BaseModel):
    """What went wrong."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    code: str
    """of the taxonomy that all tiers share"""
    message: str
    """one sentence that names the value at fault and the limit"""
    param: str | None
    """the field at fault"""
    retry_after_s: float | None
    """seconds after which a retry makes sense"""


class ControlFailure(BaseModel):
    """What every request that failed gets from a controller or a worker."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    error: ControlError
    """what went wrong"""


def described(about: str, bodies: tuple[type[BaseModel], ...]) -> Described:
    """What the OpenAPI document of a controller or a worker says beyond its routes."""
    return Described(about, "the cluster token, where there is one", bodies, ControlFailure)


class TokenGuard:
    """Answers 401 on every path but the health ones, before a body is read.

    Args:
        tokens: an empty set lets everybody in but web pages: a page that somebody on this machine
            looks at could register a worker of its own, which would be sent prompts.
    """

    def __init__(self, app: ASGIApp, tokens: TokenSet) -> None:
        self._app = app
        self._tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # there is no such route
            await send({"type": "websocket.close", "code": 1008})
            return
        refused = self._refusal(scope) if scope["type"] == "http" else None
        if refused is None:
            await self._app(scope, receive, send)
        else:
            await error_response(refused)(scope, receive, send)

    def _refusal(self, scope: Scope) -> TriremeError | None:
        if scope["path"] in HEALTH_PATHS:
            return None
        if not self._tokens:
            if b"origin" not in dict(scope["headers"]):
                return None
            return TriremeError("missing_api_key", "Without a cluster token web pages are refused.")
        header = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        token = bearer(header.decode("utf-8", "surrogateescape"))
        if self._tokens.accepts(token):
            return None
        if token is None:
            return TriremeError("missing_api_key", "Give the cluster token as a bearer token.")
        return TriremeError("invalid_api_key", "The cluster token is wrong.")


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body.

    Raises:
        TriremeError: `request_too_large` as soon as it exceeds `max_bytes`.
    """
    body = await whole_body(request.receive, max_bytes)
    if body is None:
        message = f"The request body exceeds the limit of {max_bytes} bytes."
        raise TriremeError("request_too_large", message)
    return body


async def parse_body(
    request: Request, model: type[_Model], max_bytes: int = MAX_CONTROL_BODY_BYTES
) -> _Model:
    """The request's body as `model`, whatever its content type says (as FastChat reads it).

    Raises:
        TriremeError: `request_too_large`, or what `parse` raises.
    """
    return parse(await read_body(request, max_bytes), model)


def parse_query(request: Request, model: type[_Model]) -> _Model:
    """The request's query as `model`; the last of several of one name counts.

    Raises:
        TriremeError: what `parse` raises for a field at fault.
    """
    try:
        return model.model_validate(dict(request.query_params))
    except ValidationError as error:
        raise invalid(error) from error


def parse(body: bytes, model: type[_Model]) -> _Model:
    """JSON as `model`.

    Raises:
        TriremeError: `invalid_body` for what is no JSON object, `missing_required_parameter` or
            `invalid_value` for a field at fault.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise invalid(error) from error


def invalid(error: ValidationError) -> TriremeError:
    """The first thing that a schema found wrong."""
    first = error.errors(include_url=False)[0]
    param = ".".join(str(part) for part in first["loc"]) or None
    if param is None:
        return TriremeError("invalid_body", f"The body is not a valid object: {first['msg']}.")
    if first["type"] == "missing":
        return TriremeError("missing_required_parameter", f"{param} is required.", param=param)
    message = f"{param}: {first['msg']} (given {quoted(first['input'])})."
    return TriremeError("invalid_value", message, param=param)


def error_response(error: TriremeError) -> JSONResponse:
    """An error as `{"error": {code, message, param, retry_after_s}}` with its true status."""
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    if error.spec.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(
        {"error": error.to_wire()}, status_code=error.spec.status, headers=headers or None
    )


def failed(_scope: Scope, error: TriremeError) -> JSONResponse:
    """The same for what takes the request's scope too."""
    return error_response(error)


def install_error_handlers(app: FastAPI, tier: str) -> None:
    """Render every failure of a route as `error_response` does; `tier` is named in a fault's."""

    @app.exception_handler(TriremeError)
    async def known(_request: Request, error: TriremeError) -> JSONResponse:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def bad_parameter(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        param = str(first["loc"][-1])
        message = f"{param}: {first['msg']} (given {quoted(first['input'])})."
        return error_response(TriremeError("invalid_value", message, param=param))

    @app.exception_handler(HTTPException)
    async def no_route(_request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 405:
            known_error = TriremeError("method_not_supported", "The route has no such method.")
        elif error.status_code == 404:
            known_error = TriremeError("unknown_url", "There is no such route.")
        else:
            known_error = TriremeError("invalid_request", str(error.detail))
        return error_response(known_error)

    app.add_middleware(CatchAll, tier=tier, render=failed)
