"""The health routes that every tier answers without authentication."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from protocol import __version__

HEALTH_PATHS = frozenset(
    {"/health", "/healthz", "/livez", "/readyz", "/ping", "/version", "/metrics"}
)
"""Paths that are open to everybody."""


_WORDS: Final = {"type": "object", "additionalProperties": {"type": "string"}}
_NOT_READY: Final[dict[int | str, dict[str, Any]]] = {
    200: {"content": {"application/json": {"schema": _WORDS}}},
    503: {
        "description": "not ready; `reason` says why",
        "content": {"application/json": {"schema": _WORDS}},
    },
}


def health_router(
    tier: str,
    not_ready: Callable[[], str | None],
    metrics: CollectorRegistry,
    of_all: Callable[[], Awaitable[bytes]] | None = None,
) -> APIRouter:
    """Routes `/health`, `/healthz`, `/livez`, `/ping` (alive), `/readyz`, `/version`, `/metrics`.

    Args:
        tier: the tier's name, shown by `/version`.
        not_ready: the reason why the tier cannot serve now, or None when it can; `/readyz`
            answers 503 with the reason.
        metrics: what `/metrics` shows, in Prometheus' text format.
        of_all: gives that text instead, where this is one of several processes.
    """
    router = APIRouter(tags=["health"])

    def alive() -> dict[str, str]:
        return {"status": "ok"}

    for path in ("/health", "/healthz", "/livez", "/ping"):
        router.add_api_route(path, alive, methods=["GET"])
        router.add_api_route(path, alive, methods=["HEAD"], include_in_schema=False)

    @router.head("/readyz", include_in_schema=False)
    @router.get("/readyz", responses=_NOT_READY)
    def readyz() -> JSONResponse:
        reason = not_ready()
        if reason is None:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "not ready", "reason": reason}, status_code=503)

    @router.get("/version")
    def version() -> dict[str, str]:
        return {"tier": tier, "version": __version__}

    @router.get(
        "/metrics",
        response_class=PlainTextResponse,
        responses={
            200: {"description": "Prometheus' text format"},
            503: {
                "description": "one of several processes, whose parent is silent; `reason` says so",
                "content": {"application/json": {"schema": _WORDS}},
            },
        },
    )
    async def show_metrics() -> Response:
        if of_all is None:
            text = await asyncio.to_thread(generate_latest, metrics)
        else:
            try:
                text = await of_all()
            except TimeoutError:
                return JSONResponse({"reason": "the parent process is silent"}, status_code=503)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    return router
