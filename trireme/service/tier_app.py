"""FastAPI with a tier's own middlewares around the whole of it.

What `FastAPI.add_middleware` takes stands behind the catch-alls and the telemetry of Starlette and
FastAPI, five calls that every request passes in both directions. What `add_edge` takes stands
before them: a request that is refused, or answered by `Shortcut`, costs none of that.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

Middleware: TypeAlias = Callable[..., ASGIApp]


class TierApp(FastAPI):
    """A tier's app; takes what `FastAPI` takes."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        self._edge: ASGIApp = partial(FastAPI.__call__, self)

    def add_edge(self, middleware: Middleware, **fields: Any) -> None:
        """Put a middleware around everything so far: the last one added is the outermost.

        It must answer for what it raises itself, as nothing but the server stands before it.
        """
        self._edge = middleware(self._edge, **fields)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await super().__call__(scope, receive, send)
            return
        scope["app"] = self
        await self._edge(scope, receive, send)
