"""What every tier's OpenAPI document needs beside what FastAPI makes of its routes.

The routes read their bodies themselves, and each tier's errors have one form, so FastAPI knows of
neither. Knows no tier.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from protocol.errors import TAXONOMY
from trireme.service.health import HEALTH_PATHS

_SCHEMA_PATH: Final = "#/components/schemas/{model}"
_EVERYWHERE: Final = frozenset({400, 401, 500})
_NOT_ROUTED: Final = 405
"""The one status that no operation answers: it is that of a method without an operation."""

_RETRY_AFTER: Final = {
    "description": "seconds after which a retry makes sense",
    "schema": {"type": "integer", "minimum": 1},
}

Headers: TypeAlias = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Described:
    """What is said of a tier.

    Attributes:
        about: the document's first words.
        key: what the bearer token is.
        bodies: what routes read, as `body_of` names it.
        answers: what routes answer, beyond what FastAPI knows.
        failure: the form of every error. failures: of those below certain paths.
        response_headers: of every answer. parameters: of every operation that reads a body.
        key_header: another header that the key may come in.
    """

    about: str
    key: str
    bodies: tuple[type[BaseModel], ...]
    failure: type[BaseModel]
    answers: tuple[type[BaseModel], ...] = ()
    failures: Mapping[str, type[BaseModel]] = field(default_factory=dict)
    response_headers: Headers | None = None
    parameters: tuple[Mapping[str, Any], ...] = ()
    key_header: str | None = None


def json_of(model: type[BaseModel]) -> dict[str, Any]:
    """The content of a body or an answer that is `model` as JSON."""
    return {"application/json": {"schema": {"$ref": _SCHEMA_PATH.format(model=model.__name__)}}}


def body_of(model: type[BaseModel]) -> dict[str, Any]:
    """`openapi_extra` of a route that reads `model`, one of `Described.bodies`."""
    return {"requestBody": {"required": True, "content": json_of(model)}}


def query_of(model: type[BaseModel]) -> dict[str, Any]:
    """`openapi_extra` of a route that reads its query as `model`; each field may be absent."""
    fields = model.model_json_schema()["properties"]
    return {
        "parameters": [
            {"name": name, "in": "query", "required": False, "schema": schema}
            for name, schema in fields.items()
        ]
    }


def bytes_of(media_type: str, about: str) -> dict[str, Any]:
    """What is said of an answer that is a stream of bytes."""
    return {"description": about, "content": {media_type: {"schema": {"type": "string"}}}}


def describe(app: FastAPI, tier: Described) -> None:
    """Add the schemas, the errors, the headers and the key to the app's document."""
    made = app.openapi

    def document() -> dict[str, Any]:
        if app.openapi_schema is not None:
            return app.openapi_schema
        found = made()
        found["info"]["description"] = tier.about
        schemes: dict[str, Any] = {
            "bearer": {"type": "http", "scheme": "bearer", "description": tier.key}
        }
        if tier.key_header is not None:
            schemes["header"] = {"type": "apiKey", "in": "header", "name": tier.key_header}
        found["security"] = [*({name: []} for name in schemes), {}]
        components = found.setdefault("components", {})
        components["schemas"] = _schemas(components.get("schemas", {}), tier)
        components["securitySchemes"] = schemes
        for path, operations in found["paths"].items():
            for operation in operations.values():
                _complete(path, operation, tier)
        return found

    app.openapi = document  # type: ignore[method-assign]  # how FastAPI says to do it


def _schemas(made: Mapping[str, Any], tier: Described) -> dict[str, Any]:
    # FastAPI's own errors are never sent
    left_out = ("HTTPValidationError", "ValidationError")
    kept = {name: schema for name, schema in made.items() if name not in left_out}
    failures = (tier.failure, *tier.failures.values())
    answers = _defined((*tier.answers, *failures), "serialization")
    return {**answers, **_defined(tier.bodies, "validation"), **kept}


def _defined(
    models: Iterable[type[BaseModel]], mode: Literal["validation", "serialization"]
) -> dict[str, Any]:
    _, found = models_json_schema([(one, mode) for one in models], ref_template=_SCHEMA_PATH)
    schemas: dict[str, Any] = found.get("$defs", {})
    return schemas


def _complete(path: str, operation: dict[str, Any], tier: Described) -> None:
    responses = operation["responses"]
    responses.pop("422", None)
    if path in HEALTH_PATHS:
        operation["security"] = []
    else:
        for status in _statuses(operation, path):
            responses.setdefault(str(status), _failure(status, _form(path, tier)))
    if "requestBody" in operation:
        operation["parameters"] = [*operation.get("parameters", ()), *tier.parameters]
    for response in responses.values():
        if tier.response_headers:
            response["headers"] = {**response.get("headers", {}), **tier.response_headers}


def _statuses(operation: Mapping[str, Any], path: str) -> list[int]:
    if "requestBody" in operation:
        return sorted({spec.status for spec in TAXONOMY.values()} - {_NOT_ROUTED})
    return sorted(_EVERYWHERE | {404} if "{" in path else _EVERYWHERE)


def _form(path: str, tier: Described) -> type[BaseModel]:
    return next((one for at, one in tier.failures.items() if path.startswith(at)), tier.failure)


def _failure(status: int, form: type[BaseModel]) -> dict[str, Any]:
    of_status = {code: spec for code, spec in TAXONOMY.items() if spec.status == status}
    codes = [f"`{code}`" for code, spec in of_status.items() if spec.public]
    if len(codes) < len(of_status):
        codes.append("null")
    response: dict[str, Any] = {
        "description": "`error.code`: " + ", ".join(codes),
        "content": json_of(form),
    }
    if status in (429, 503):
        response["headers"] = {"Retry-After": _RETRY_AFTER}
    return response
