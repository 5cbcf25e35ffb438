"""What each model can be asked for, field by field, read from the very types that validate. Pure.

No list of fields is kept here: a field of a request's type is in the table, with the limits of its
JSON schema, and the markers of `protocol/openai_fields.py` say how it is answered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, TypeAlias, get_args

from pydantic import BaseModel

from gateway.fastchat_client import NATIVE_ONLY, TEXTS_ONLY
from gateway.fleet_view import Snapshot
from protocol.anthropic import MessagesRequest
from protocol.create_response import CreateResponse
from protocol.fleet import Capability, Feature, ModelRecord, WorkerRecord
from protocol.openai import ChatCompletionRequest, CompletionRequest, EmbeddingsRequest
from protocol.openai_fields import Needs, Only, Refused, RequestFields, WithoutEffect
from protocol.texts import (
    DetokenizationRequest,
    RerankRequest,
    ScoringRequest,
    TokenizationRequest,
)

Support: TypeAlias = Literal["honoured", "default_only", "refused"]
Entry: TypeAlias = Mapping[str, Any]
"""A `protocol.openai_responses.FieldCapability` as JSON."""


class Operation(NamedTuple):
    """Something that a model can be asked to do.

    Attributes:
        path: the route. body: what it reads.
        needs: the capability in a worker's record; None is what every worker does.
        native: whether FastChat's workers do not do it.
    """

    path: str
    body: type[RequestFields]
    needs: Capability | None
    native: bool = False


OPERATIONS: Final[Mapping[str, Operation]] = MappingProxyType(
    {
        "chat": Operation("/v1/chat/completions", ChatCompletionRequest, "chat"),
        "completions": Operation("/v1/completions", CompletionRequest, "completions"),
        "embeddings": Operation("/v1/embeddings", EmbeddingsRequest, "embeddings"),
        "responses": Operation("/v1/responses", CreateResponse, "chat"),
        "messages": Operation("/v1/messages", MessagesRequest, "chat"),
        "score": Operation("/v1/score", ScoringRequest, "score", native=True),
        "rerank": Operation("/v1/rerank", RerankRequest, "score", native=True),
        "tokenize": Operation("/tokenize", TokenizationRequest, None, native=True),
        "detokenize": Operation("/detokenize", DetokenizationRequest, None, native=True),
    }
)

_FEATURES: Final[frozenset[Feature]] = frozenset(get_args(Feature))
_NOT_ON_FASTCHAT: Final = _FEATURES - {"plain_answers"}
_REF: Final = "/openapi.json#/components/schemas/{model}"


def capabilities(
    snapshot: Snapshot, *, lenient: bool, may_use: Callable[[str], bool] = lambda _model: True
) -> dict[str, Any]:
    """The answer to GET /v1/capabilities, a `CapabilityList` as JSON.

    Args:
        lenient: whether the gateway ignores fields that it does not know.
        may_use: whether the caller may use that model.
    """
    return {
        "object": "list",
        "unknown_fields": "ignored" if lenient else "refused",
        "data": [_model(name, snapshot) for name in sorted(filter(may_use, snapshot.models))],
    }


def _model(name: str, snapshot: Snapshot) -> dict[str, Any]:
    workers = snapshot.serving(name)
    return {
        "id": name,
        "object": "model.capabilities",
        "context_length": snapshot.models[name].context_length or None,
        "engines": sorted({one.engine for one in _records(name, workers) if one.engine}),
        "operations": {key: _operation(one, name, workers) for key, one in OPERATIONS.items()},
    }


def _operation(asked: Operation, name: str, workers: Iterable[WorkerRecord]) -> dict[str, Any]:
    able = [one for one in workers if _can(one, name, asked)]
    if not able:
        return {"path": asked.path, "served": False}
    # a request that FastChat's wire cannot carry goes to the other workers where there are any
    native = [worker for worker in able if worker.wire == "native"]
    lacking = _lacking(_records(name, native)) if native else _NOT_ON_FASTCHAT
    fields = _table(asked.body, lacking, bool(native))
    return {"path": asked.path, "served": True, "fields": fields}


def _can(worker: WorkerRecord, name: str, asked: Operation) -> bool:
    if asked.native and worker.wire != "native":
        return False
    records = _records(name, [worker])
    return any(asked.needs is None or asked.needs in one.capabilities for one in records)


def _records(name: str, workers: Iterable[WorkerRecord]) -> list[ModelRecord]:
    return [record for worker in workers if (record := worker.model(name)) is not None]


def _lacking(records: Iterable[ModelRecord]) -> frozenset[Feature]:
    """Features that a worker of the model says it has not; what it does not say is no lack."""
    told = [one.features for one in records if one.features is not None]
    return frozenset(one for one in _FEATURES if any(one not in has for has in told))


@cache
def _table(
    model: type[RequestFields], lacking: frozenset[Feature], native: bool
) -> Mapping[str, Entry]:
    def entry_of(name: str, entry: Entry) -> Entry:
        for marker in _markers(model, name):
            if isinstance(marker, Needs) and marker.feature in lacking:
                return _narrowed(entry, marker.otherwise)
        return entry if native else _on_fastchat(name, entry)

    fields = fields_of(model)
    return MappingProxyType({name: entry_of(name, entry) for name, entry in fields.items()})


def _on_fastchat(name: str, entry: Entry) -> Entry:
    if name in TEXTS_ONLY:
        text = {"type": "string"}
        return {**entry, "accepts": {"anyOf": [text, {"type": "array", "items": text}]}}
    if name in NATIVE_ONLY and entry["support"] == "honoured":
        return _narrowed(entry, () if entry["default"] is None else (entry["default"],))
    return entry


def _narrowed(entry: Entry, values: tuple[Any, ...]) -> Entry:
    """The entry where no other values than these are taken; null always is."""
    if not values:
        return {**entry, "support": "refused", "accepts": {"type": "null"}}
    return {**entry, "support": "default_only", "accepts": {"enum": list(values)}}


# ---- from a request's type ----------------------------------------------------------------------


@cache
def fields_of(model: type[RequestFields]) -> Mapping[str, Entry]:
    """Each field of a request by name, as a model that lacks nothing takes it.

    They stand in the order in which a person reads them. An entry is a `FieldCapability` as JSON.
    """
    properties = model.model_json_schema(ref_template=_REF)["properties"]
    entries = {name: _entry(model, name, properties[name]) for name in model.model_fields}
    return MappingProxyType(dict(sorted(entries.items(), key=lambda item: _rank(item[1]))))


def _rank(entry: Entry) -> tuple[bool, bool, int]:
    """Required ones come first, those that do nothing last, the others as they are declared."""
    order = ("honoured", "default_only", "refused")
    return "required" not in entry, "no_effect" in entry, order.index(entry["support"])


def _entry(model: type[BaseModel], name: str, schema: Mapping[str, Any]) -> Entry:
    field, markers = model.model_fields[name], _markers(model, name)
    # null means the default in every field, so it is not said of each
    others = [one for one in schema.get("anyOf", ()) if one != {"type": "null"}]
    accepted = others[0] if len(others) == 1 else schema
    left_out = ("title", "default", "description")
    entry: dict[str, Any] = {
        "support": _support(markers),
        "description": " ".join((field.description or "").split()),
        "accepts": {key: value for key, value in accepted.items() if key not in left_out},
    }
    if field.is_required():
        entry["required"] = True
    else:
        entry["default"] = field.get_default(call_default_factory=True, validated_data={})
    if any(isinstance(one, WithoutEffect) for one in markers):
        entry["no_effect"] = True
    return entry


def _support(markers: Iterable[Any]) -> Support:
    kinds = {type(one) for one in markers}
    return "refused" if Refused in kinds else "default_only" if Only in kinds else "honoured"


def _markers(model: type[BaseModel], name: str) -> list[Any]:
    return model.model_fields[name].metadata
