"""The gateway's own OpenAPI document: what the routes read, answer, stream and fail with.

The routes read bodies themselves and errors have one form, so FastAPI knows of neither; both are
added to what it makes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from protocol.errors import TAXONOMY
from protocol.openai import (
    APIChatCompletionRequest,
    ChatCompletionRequest,
    ChatCompletionStreamResponse,
    CompletionRequest,
    CompletionResponse,
    EmbeddingsRequest,
    ErrorResponse,
    TokenCheckRequest,
)
from trireme.service.health import HEALTH_PATHS

BODIES: Final[tuple[type[BaseModel], ...]] = (
    APIChatCompletionRequest,
    ChatCompletionRequest,
    CompletionRequest,
    EmbeddingsRequest,
    TokenCheckRequest,
)
"""What routes read, as `body_of` names it."""

ANSWERS: Final[tuple[type[BaseModel], ...]] = (
    ChatCompletionStreamResponse,
    CompletionResponse,
    ErrorResponse,
)
"""What routes stream, as `body_of` names it, and what they fail with."""

ABOUT: Final = """\
OpenAI's API over a fleet of workers, with extensions.

In every body an explicit null means the field's default, and a field that is not described is a
400 unless the gateway is lenient. What a certain model can be asked for is told by
`GET /v1/capabilities`.
"""

_SCHEMA_PATH: Final = "#/components/schemas/{model}"
_EVERYWHERE: Final = frozenset({400, 401, 500})
_NOT_ROUTED: Final = 405
"""The one status that no operation answers: it is that of a method without an operation."""

_REQUEST_ID: Final = {
    "description": "the client's own when it sent a plain one, else a new one",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:+/=@-]{1,128}$"},
}
_TIME_LIMIT: Final = {
    "name": "x-request-timeout-ms",
    "in": "header",
    "required": False,
    "description": "milliseconds after which the request is a 504, less than the gateway's own",
    "schema": {"type": "integer", "minimum": 1, "maximum": 10**12 - 1},
}
_RETRY_AFTER: Final = {
    "description": "seconds after which a retry makes sense",
    "schema": {"type": "integer", "minimum": 1},
}


def body_of(model: type[BaseModel], *, streams: type[BaseModel] | None = None) -> dict[str, Any]:
    """`openapi_extra` of a route whose JSON body is `model`, one of `BODIES`.

    Args:
        streams: each event's data with `"stream": true`, one of `ANSWERS`.
    """
    extra: dict[str, Any] = {"requestBody": {"required": True, "content": _json(model)}}
    if streams is not None:
        events = {
            "type": "string",
            "description": f"server-sent events: `data: ` and a {streams.__name__} each, and "
            f"`data: [DONE]` at the end, or an event with an {ErrorResponse.__name__} in its place",
        }
        extra["responses"] = {"200": {"content": {"text/event-stream": {"schema": events}}}}
    return extra


def describe(app: FastAPI) -> None:
    """Add the schemas, the errors and the headers to the app's document."""
    made = app.openapi

    def document() -> dict[str, Any]:
        if app.openapi_schema is not None:
            return app.openapi_schema
        found = made()
        found["info"]["description"] = ABOUT
        found["security"] = [{"bearer": []}, {}]
        components = found.setdefault("components", {})
        components["schemas"] = _schemas(components.get("schemas", {}))
        components["securitySchemes"] = {
            "bearer": {
                "type": "http",
                "scheme": "bearer",
                "description": "an API key, where the gateway has any",
            }
        }
        for path, operation in _operations(found):
            _complete(path, operation)
        return found

    app.openapi = document  # type: ignore[method-assign]  # how FastAPI says to do it


def _schemas(made: dict[str, Any]) -> dict[str, Any]:
    _, bodies = models_json_schema(
        [(model, "validation") for model in BODIES], ref_template=_SCHEMA_PATH
    )
    _, answers = models_json_schema(
        [(model, "serialization") for model in ANSWERS], ref_template=_SCHEMA_PATH
    )
    # FastAPI's own errors are never sent
    left_out = ("HTTPValidationError", "ValidationError")
    kept = {name: schema for name, schema in made.items() if name not in left_out}
    return {**answers["$defs"], **bodies["$defs"], **kept}


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, operations in document["paths"].items():
        for operation in operations.values():
            yield path, operation


def _complete(path: str, operation: dict[str, Any]) -> None:
    responses = operation["responses"]
    responses.pop("422", None)
    if path in HEALTH_PATHS:
        operation["security"] = []
    else:
        for status in _statuses(operation, path):
            responses.setdefault(str(status), _failure(status))
    if "requestBody" in operation:
        operation["parameters"] = [*operation.get("parameters", ()), _TIME_LIMIT]
    for response in responses.values():
        response.setdefault("headers", {})["x-request-id"] = _REQUEST_ID


def _statuses(operation: dict[str, Any], path: str) -> list[int]:
    if "requestBody" in operation:
        return sorted({spec.status for spec in TAXONOMY.values()} - {_NOT_ROUTED})
    return sorted(_EVERYWHERE | {404} if "{" in path else _EVERYWHERE)


def _failure(status: int) -> dict[str, Any]:
    of_status = {code: spec for code, spec in TAXONOMY.items() if spec.status == status}
    codes = [f"`{code}`" for code, spec in of_status.items() if spec.public]
    if len(codes) < len(of_status):
        codes.append("null")
    response: dict[str, Any] = {
        "description": "`error.code`: " + ", ".join(codes),
        "content": _json(ErrorResponse),
    }
    if status in (429, 503):
        response["headers"] = {"Retry-After": _RETRY_AFTER}
    return response


def _json(model: type[BaseModel]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _SCHEMA_PATH.format(model=model.__name__)}}}
