"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from gateway.dispatch import not_found
from gateway.state import Gateway, caller_of, gateway_of
from protocol.fleet import ModelRecord
from protocol.openai import ModelCard, ModelList, ModelPermission

router = APIRouter(tags=["models"])


@router.get("/v1/models", response_model=ModelList)
async def models(request: Request) -> Response:
    """The models that can be served now to this caller, by name."""
    gateway, caller = gateway_of(request), caller_of(request)
    found = gateway.view.snapshot.models
    names = sorted(filter(caller.may_use, found))
    listed = ModelList(data=[_card(gateway, found[name]) for name in names])
    return Response(listed.model_dump_json(), media_type="application/json")


@router.get("/v1/models/{model:path}", response_model=ModelCard)
async def model(request: Request, model: str) -> Response:
    """One of them."""
    gateway = gateway_of(request)
    record = gateway.view.snapshot.models.get(model)
    if record is None or not caller_of(request).may_use(model):
        raise not_found(model)
    return Response(_card(gateway, record).model_dump_json(), media_type="application/json")


def _card(gateway: Gateway, record: ModelRecord) -> ModelCard:
    return ModelCard(
        id=record.name,
        created=gateway.created,
        root=record.name,
        permission=[ModelPermission(created=gateway.created)],
        max_model_len=record.context_length or None,
    )
