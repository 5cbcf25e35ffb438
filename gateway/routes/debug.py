"""GET /debug/route/{request_id}: why a request went to its worker. For operators."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from gateway.state import gateway_of
from gateway.trail import KEPT_REQUESTS
from protocol.errors import TriremeError, quoted
from protocol.route_report import RouteReport

router = APIRouter(tags=["debug"])


@router.get("/debug/route/{request_id:path}", response_model=RouteReport)
async def show_route(request: Request, request_id: str) -> Response:
    """Every attempt at a worker, those that it was compared with, and what came of it.

    It needs the cluster token, no API key; without one, and without API keys, it
    answers its own machine only.
    """
    found = await gateway_of(request).find_route(request_id)
    if found is None:
        message = (
            f"No request {quoted(request_id)} among the last {KEPT_REQUESTS} "
            "that this gateway sent to a worker."
        )
        raise TriremeError("response_not_found", message)
    return Response(found, media_type="application/json")
