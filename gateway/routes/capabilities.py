"""GET /v1/capabilities: what each model can be asked for, field by field."""

from __future__ import annotations

import orjson
from fastapi import APIRouter, Request, Response

from gateway.capabilities import capabilities
from gateway.state import caller_of, gateway_of
from protocol.openai import CapabilityList

router = APIRouter(tags=["models"])


@router.get("/v1/capabilities", response_model=CapabilityList)
async def show_capabilities(request: Request) -> Response:
    """Operations and fields of the models that can be served now, by name."""
    gateway, caller = gateway_of(request), caller_of(request)
    found = capabilities(
        gateway.view.snapshot, lenient=gateway.settings.lenient, may_use=caller.may_use
    )
    return Response(orjson.dumps(found, default=dict), media_type="application/json")
