"""What becomes of a fault: one trace in the log, and an answer of the tier's own form."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeAlias

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from protocol.errors import TriremeError

log = logging.getLogger(__name__)

Render: TypeAlias = Callable[[Scope, TriremeError], Response]
"""The answer to a request of this scope that failed so."""


def fault(tier: str) -> TriremeError:
    """What is told of a fault: nothing but where to look."""
    return TriremeError("internal_error", f"The {tier} failed; its log has the reason.")


class CatchAll:
    """Answers for faults of a FastAPI app's routes; for `add_middleware`.

    FastAPI's own stands outside of it. That would raise each again behind its answer, for the
    server to log it a second time.
    """

    def __init__(self, app: ASGIApp, tier: str, render: Render) -> None:
        self._app = app
        self._tier = tier
        self._render = render

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def noted_send(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, noted_send)
        except Exception:
            if begun:
                raise  # who stands outside tells of it
            log.exception("request failed")
            await self._render(scope, fault(self._tier))(scope, receive, send)
