"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from gateway.state import Gateway, gateway_of
from protocol.errors import TriremeError, quoted
from protocol.fleet import ModelRecord
from protocol.openai import ModelCard, ModelList, ModelPermission

router = APIRouter(tags=["models"])


@router.get("/v1/models", response_model=ModelList)
async def models(request: Request) -> Response:
    """The models that can be served now, by name."""
    gateway = gateway_of(request)
    found = gateway.view.snapshot.models
    listed = ModelList(data=[_card(gateway, found[name]) for name in sorted(found)])
    return Response(listed.model_dump_json(), media_type="application/json")


@router.get("/v1/models/{model:path}", response_model=ModelCard)
async def model(request: Request, model: str) -> Response:
    """One of them."""
    gateway = gateway_of(request)
    record = gateway.view.snapshot.models.get(model)
    if record is None:
        message = f"The model `{quoted(model)}` does not exist or you do not have access to it."
        raise TriremeError("model_not_found", message, param="model")
    return Response(_card(gateway, record).model_dump_json(), media_type="application/json")


def _card(gateway: Gateway, record: ModelRecord) -> ModelCard:
    return ModelCard(
        id=record.name,
        created=gateway.created,
        root=record.name,
        permission=[ModelPermission(created=gateway.created)],
        max_model_len=record.context_length or None,
    )
