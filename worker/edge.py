"""The worker's HTTP edge: token, body limits, parsing once, errors as JSON, streams that close.

`Streamed` owns the generator that it sends: it closes it when the client leaves, before the first
byte too, and when the client stops reading.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from typing import Any, Final, Generic, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ValidationError
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from protocol.errors import TriremeError, quoted
from trireme.service.auth import TokenSet, bearer
from trireme.service.health import HEALTH_PATHS

log = logging.getLogger(__name__)

MAX_BODY_BYTES: Final = 16 * 1024 * 1024
SEND_TIMEOUT_S: Final = 30.0
"""A client that reads nothing for so long is cut off."""

_SCHEMA_PATH: Final = "#/components/schemas/{model}"

_Model = TypeVar("_Model", bound=BaseModel)
_Item = TypeVar("_Item")


class TokenGuard:
    """Answers 401 on every path but the health ones, before a body is read.

    Args:
        tokens: an empty set lets everybody in.
    """

    def __init__(self, app: ASGIApp, tokens: TokenSet) -> None:
        self._app = app
        self._tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = self._refusal(scope) if scope["type"] == "http" else None
        if refused is None:
            await self._app(scope, receive, send)
        else:
            await error_response(refused)(scope, receive, send)

    def _refusal(self, scope: Scope) -> TriremeError | None:
        if scope["path"] in HEALTH_PATHS:
            return None
        header = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        token = bearer(header.decode("utf-8", "surrogateescape"))
        if self._tokens.accepts(token):
            return None
        if token is None:
            return TriremeError("missing_api_key", "Give the cluster token as a bearer token.")
        return TriremeError("invalid_api_key", "The cluster token is wrong.")


async def parse_body(request: Request, model: type[_Model]) -> _Model:
    """The request's body as `model`, whatever its content type says (as FastChat reads it).

    Raises:
        TriremeError: `request_too_large`, `invalid_body` for what is no JSON object,
            `missing_required_parameter` or `invalid_value` for a field at fault.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise TriremeError(
                "request_too_large",
                f"The request body exceeds the limit of {MAX_BODY_BYTES} bytes.",
            )
    try:
        return model.model_validate_json(bytes(body))
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


def install_error_handlers(app: FastAPI) -> None:
    """Render every failure of a route as `error_response` does."""

    @app.exception_handler(TriremeError)
    async def known(_request: Request, error: TriremeError) -> JSONResponse:
        return error_response(error)

    @app.exception_handler(HTTPException)
    async def no_route(_request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 405:
            known_error = TriremeError("method_not_supported", "The route has no such method.")
        elif error.status_code == 404:
            known_error = TriremeError("unknown_url", "There is no such route.")
        else:
            known_error = TriremeError("invalid_request", str(error.detail))
        return error_response(known_error)

    @app.exception_handler(Exception)
    async def unexpected(_request: Request, _error: Exception) -> JSONResponse:
        return error_response(TriremeError("internal_error", "The worker failed; see its log."))


class Streamed(Response, Generic[_Item]):
    """Sends what a generator yields, and closes the generator whatever happens.

    Args:
        items: only this response iterates and closes it.
        encode: an item as bytes of the body.
        first: items taken from it already.
    """

    def __init__(
        self,
        items: AsyncGenerator[_Item, None],
        encode: Callable[[_Item], bytes],
        media_type: str,
        first: Sequence[_Item] = (),
    ) -> None:
        super().__init__(media_type=media_type, headers={"Cache-Control": "no-cache"})
        del self.headers["content-length"]
        self._items = items
        self._encode = encode
        self._first = first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.create_task(self._send(send))
        leaving = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            sending.cancel()
            leaving.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)
            await self._items.aclose()
        if not sending.cancelled() and (error := sending.exception()) is not None:
            if not isinstance(error, TimeoutError):
                raise error
            log.warning("cut off a client that read nothing for %g s", SEND_TIMEOUT_S)

    async def _send(self, send: Send) -> None:
        start = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **start})
        for item in self._first:
            await self._send_item(send, item)
        async for item in self._items:
            await self._send_item(send, item)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_item(self, send: Send, item: _Item) -> None:
        body = self._encode(item)
        async with asyncio.timeout(SEND_TIMEOUT_S):
            await send({"type": "http.response.body", "body": body, "more_body": True})


async def while_connected(request: Request, work: Coroutine[Any, Any, _Item]) -> _Item:
    """The result of `work`, which is cancelled when the client leaves.

    Raises:
        TriremeError: `invalid_request` when the client has left: nobody reads it.
    """
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_disconnected(request.receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)
    raise TriremeError("invalid_request", "The client has left.")


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def body_schema(model: type[BaseModel]) -> dict[str, Any]:
    """What OpenAPI says of a route that reads `model` by `parse_body`."""
    schema = {"$ref": _SCHEMA_PATH.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def document_bodies(app: FastAPI, models: Sequence[type[BaseModel]]) -> None:
    """Put the schemas that `body_schema` refers to into the app's OpenAPI document."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        document = made()
        _, found = models_json_schema(
            [(model, "validation") for model in models], ref_template=_SCHEMA_PATH
        )
        components = document.setdefault("components", {})
        components["schemas"] = {**components.get("schemas", {}), **found.get("$defs", {})}
        return document

    app.openapi = openapi  # type: ignore[method-assign]
