"""The worker's HTTP edge: streams that close, work that ends when its client leaves, limits."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable
from typing import Final, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from protocol.errors import TriremeError
from trireme.service.streaming import ByteStream, Leash, Patience

log = logging.getLogger(__name__)

MAX_BODY_BYTES: Final = 16 * 1024 * 1024
SEND_TIMEOUT_S: Final = 30.0
"""A client that reads nothing for so long is cut off."""

_Item = TypeVar("_Item")


def streamed(
    pieces: AsyncGenerator[bytes, None], media_type: str, *, ping: bytes = b"", ping_s: float = 0.0
) -> ByteStream:
    """The response that sends these pieces, and closes their generator whatever happens.

    Args:
        ping: sent after `ping_s` seconds without a piece; empty sends nothing.
    """

    def stuck() -> None:
        log.warning("cut off a client that read nothing for %g s", SEND_TIMEOUT_S)

    patience = Patience(SEND_TIMEOUT_S, ping=ping, ping_s=ping_s, tick_s=min(1.0, SEND_TIMEOUT_S))
    headers = {"Cache-Control": "no-cache"}
    return ByteStream(pieces, media_type, patience, headers=headers, stuck=stuck)


async def while_connected(request: Request, work: Awaitable[_Item]) -> _Item:
    """The result of `work`, which is cancelled when the client leaves.

    Raises:
        TriremeError: `invalid_request` when the client has left: nobody reads it.
    """
    try:
        async with Leash(request.scope):
            return await work
    except ClientDisconnect as error:
        raise TriremeError("invalid_request", "The client has left.") from error
