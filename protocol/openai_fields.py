"""Field types of the OpenAI requests: normalised at the edge, refused with our own codes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeAlias, TypeVar, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from protocol.fleet import Feature

UNION_TAG: Final = "~"
"""Begins names of union branches, which show in pydantic's error locations and are no fields."""

MAX_INPUTS: Final = 2048
MAX_BIASES: Final = 1024
MAX_CHOICES: Final = 2048
"""Bound of n x prompts, checked before anything is allocated."""

_T = TypeVar("_T")


def fault(code: str, message: str, at: str | None = None) -> PydanticCustomError:
    """A validation error whose type is a taxonomy code."""
    # pydantic asks for literals, for translators; ours come from the taxonomy
    return PydanticCustomError(code, "{message}", {"message": message, "at": at})


def moved(error: PydanticCustomError, places: Mapping[str, str]) -> PydanticCustomError:
    """The same fault at the place that another dialect has for it.

    Args:
        places: what to write for parts of the path; the first that is in it counts.
    """
    context = error.context or {}
    at = context.get("at") or ""
    old = next((one for one in places if one in at), None)
    return fault(error.type, context["message"], at.replace(old, places[old]) if old else at)


@dataclass(frozen=True, slots=True)
class Only:
    """Accepts the values that ask for nothing, refuses the rest by name."""

    allowed: tuple[Any, ...]

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._checked, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return handler(schema) | {"enum": list(self.allowed)}

    def _checked(self, value: _T) -> _T:
        if value not in self.allowed:
            shown = ", ".join(json.dumps(one) for one in self.allowed)
            raise fault("unsupported_parameter", f"only {shown} is supported here.")
        return value


def only(*allowed: Any) -> Only:
    """Marks a field that is accepted with these values, which ask for nothing."""
    return Only(allowed)


@dataclass(frozen=True, slots=True)
class Refused:
    """A known field that asks for what this stack does not do: refused unless it is null."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_before_validator_function(_refuse, handler(source))

    def __get_pydantic_json_schema__(
        self, _schema: CoreSchema, _handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"type": "null"}


def _refuse(_value: Any) -> Any:
    raise fault("unsupported_parameter", "it is not supported.")


Unsupported: TypeAlias = Annotated[Any, Refused()]


@dataclass(frozen=True, slots=True)
class WithoutEffect:
    """Marks a field of which any value is accepted, and none changes the answer."""


@dataclass(frozen=True, slots=True)
class Needs:
    """Marks a field that a model can serve only with a feature of its engine.

    Attributes:
        feature: one of `protocol.fleet.ModelRecord.features`.
        otherwise: the values that a model without it takes.
    """

    feature: Feature
    otherwise: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class _FirstFault:
    """Pydantic's own `FailFast` cannot be hashed, which generic aliases need."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return cast(CoreSchema, {**handler(source), "fail_fast": True})


_Item = TypeVar("_Item")
Many: TypeAlias = Annotated[list[_Item], _FirstFault()]
"""A list whose first bad item ends the check: errors of a million items would take seconds."""


def text_or(items: str) -> Discriminator:
    """Tells a text, the branch tagged `~text`, from an array of `items`, tagged `~list`."""

    def tag(value: Any) -> str | None:
        return "~text" if isinstance(value, str) else "~list" if isinstance(value, list) else None

    return Discriminator(
        tag,
        custom_error_type="invalid_type",
        custom_error_message=f"expected a string or an array of {items}.",
    )


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _logit_bias(value: Any) -> dict[str, float]:
    if not isinstance(value, dict):
        raise fault("invalid_type", "expected an object of token ids and biases.")
    if len(value) > MAX_BIASES:
        raise fault("invalid_value", f"at most {MAX_BIASES} entries are allowed, got {len(value)}.")
    for token, bias in value.items():
        if not (token.isascii() and token.isdecimal() and len(token) <= 10):
            raise fault("invalid_value", f"keys must be token ids, got {token[:100]!r}.")
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
            raise fault("invalid_value", "biases must be numbers from -100 to 100.")
    return {str(int(token)): float(bias) for token, bias in value.items()}


def _token_ids(value: list[Any]) -> list[int]:
    if not value:
        raise fault("empty_array", "expected at least one token id, got an empty array.")
    for token in value:
        if isinstance(token, bool) or not isinstance(token, int):
            raise fault("invalid_type", "expected token ids to be integers.")
        if not 0 <= token < 2**31:
            raise fault("invalid_value", f"token id {str(token)[:20]} is out of range.")
    return value


def _inputs(value: Any) -> list[str | list[int]]:
    """A text, a list of texts, token ids, or a list of token ids: always a list of inputs."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise fault("invalid_type", "expected a string or an array.")
    if value and isinstance(value[0], int | float):
        return [_token_ids(value)]
    if not value:
        raise fault("empty_array", "expected at least one item, got an empty array.")
    if len(value) > MAX_INPUTS:
        raise fault(
            "array_above_max_length", f"expected at most {MAX_INPUTS} items, got {len(value)}."
        )
    inputs: list[str | list[int]] = []
    for item in value:
        if not isinstance(item, str | list):
            raise fault("invalid_type", "expected strings or arrays of token ids.")
        inputs.append(item if isinstance(item, str) else _token_ids(item))
    return inputs


_IDS_SCHEMA = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}
Inputs: TypeAlias = Annotated[
    list[str | list[int]],
    PlainValidator(_inputs),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": MAX_INPUTS,
                    "items": {"anyOf": [{"type": "string"}, _IDS_SCHEMA]},
                },
                _IDS_SCHEMA,
            ]
        }
    ),
]
LogitBias: TypeAlias = Annotated[
    dict[str, float],
    PlainValidator(_logit_bias),
    WithJsonSchema(
        {
            "type": "object",
            "maxProperties": MAX_BIASES,
            "propertyNames": {"pattern": "^[0-9]{1,10}$"},
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
        }
    ),
]
_Stop: TypeAlias = Annotated[str, Field(min_length=1, max_length=1024)]
_Stops: TypeAlias = Annotated[Many[_Stop], Field(max_length=4)]
Stops: TypeAlias = Annotated[
    _Stops, BeforeValidator(_as_list, json_schema_input_type=_Stop | _Stops)
]
Penalty: TypeAlias = Annotated[float, Field(ge=-2, le=2)]


class RequestFields(BaseModel):
    """Strict, closed; an explicit null means the default wherever there is one.

    The text below a field is its description, in the API's page, in the OpenAPI document and in
    `/v1/capabilities`; limits and defaults are added to it from the field's type.
    """

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _null_is_default(cls, fields: Any) -> Any:
        if not isinstance(fields, dict) or None not in fields.values():
            return fields
        optional = {name for name, field in cls.model_fields.items() if not field.is_required()}
        return {k: v for k, v in fields.items() if v is not None or k not in optional}
