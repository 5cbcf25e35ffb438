"""Request bodies in the gateway's own OpenAPI document; the routes read bodies themselves."""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from protocol.anthropic import CountTokensRequest, MessagesRequest
from protocol.create_response import CreateResponse
from protocol.openai import (
    APIChatCompletionRequest,
    ChatCompletionRequest,
    CompletionRequest,
    EmbeddingsRequest,
    TokenCheckRequest,
)

BODIES: Final[tuple[type[BaseModel], ...]] = (
    APIChatCompletionRequest,
    ChatCompletionRequest,
    CompletionRequest,
    CountTokensRequest,
    CreateResponse,
    EmbeddingsRequest,
    MessagesRequest,
    TokenCheckRequest,
)
_SCHEMA_PATH: Final = "#/components/schemas/{model}"


def body_of(model: type[BaseModel]) -> dict[str, Any]:
    """`openapi_extra` of a route whose JSON body is `model`, one of `BODIES`."""
    schema = {"$ref": _SCHEMA_PATH.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def describe_bodies(app: FastAPI) -> None:
    """Add the schemas of `BODIES` to the app's document."""

    made = app.openapi

    def document() -> dict[str, Any]:
        found = made()
        _, bodies = models_json_schema(
            [(model, "validation") for model in BODIES], ref_template=_SCHEMA_PATH
        )
        components = found.setdefault("components", {})
        components["schemas"] = {**bodies["$defs"], **components.get("schemas", {})}
        return found

    app.openapi = document  # type: ignore[method-assign]  # how FastAPI says to do it
