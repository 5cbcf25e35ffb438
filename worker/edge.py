"""The worker's HTTP edge: streams that close, work that ends when its client leaves, limits.

`Streamed` owns the generator that it sends: it closes it when the client leaves, before the first
byte too, and when the client stops reading.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from typing import Any, Final, Generic, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.types import Receive, Scope, Send

from protocol.errors import TriremeError

log = logging.getLogger(__name__)

MAX_BODY_BYTES: Final = 16 * 1024 * 1024
SEND_TIMEOUT_S: Final = 30.0
"""A client that reads nothing for so long is cut off."""

_SCHEMA_PATH: Final = "#/components/schemas/{model}"

_Item = TypeVar("_Item")


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
