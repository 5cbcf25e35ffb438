"""The worker's HTTP edge: streams that close, work that ends when its client leaves, limits."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Sequence
from typing import Any, Final, TypeVar

from fastapi import FastAPI, Request
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import ClientDisconnect

from protocol.errors import TriremeError
from trireme.service.streaming import ByteStream, Leash, Patience

log = logging.getLogger(__name__)

MAX_BODY_BYTES: Final = 16 * 1024 * 1024
SEND_TIMEOUT_S: Final = 30.0
"""A client that reads nothing for so long is cut off."""

_SCHEMA_PATH: Final = "#/components/schemas/{model}"

_Item = TypeVar("_Item")


def streamed(pieces: AsyncGenerator[bytes, None], media_type: str) -> ByteStream:
    """The response that sends these pieces, and closes their generator whatever happens."""

    def stuck() -> None:
        log.warning("cut off a client that read nothing for %g s", SEND_TIMEOUT_S)

    patience = Patience(SEND_TIMEOUT_S, tick_s=min(1.0, SEND_TIMEOUT_S))
    headers = {"Cache-Control": "no-cache"}
    return ByteStream(pieces, media_type, patience, headers=headers, stuck=stuck)


async def while_connected(request: Request, work: Awaitable[_Item]) -> _Item:
    """The result of `work`, which is cancelled when the client leaves.

    Raises:
        TriremeError: `invalid_request` when the client has left: nobody reads it.
    """
    try:
        async with Leash(request.receive):
            return await work
    except ClientDisconnect as error:
        raise TriremeError("invalid_request", "The client has left.") from error


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
