"""What a request says its answer's text must be: `response_format` and `structured_outputs`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Final, TypeAlias

from pydantic import WithJsonSchema

from protocol.generation import Structure
from protocol.openai_fields import fault
from protocol.openai_tools import is_function_name

MAX_CHOICES_LISTED: Final = 1024
_FORMATS: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "text": frozenset({"type"}),
        "json_object": frozenset({"type"}),
        "json_schema": frozenset({"type", "json_schema"}),
    }
)
"""Types of `response_format`, and the fields that each has."""

_OUTPUTS: Final = ("json", "json_object", "regex", "choice", "grammar")

ResponseFormat: TypeAlias = Annotated[
    dict[str, Any],
    WithJsonSchema(
        {
            "type": "object",
            "required": ["type"],
            "properties": {"type": {"enum": list(_FORMATS)}, "json_schema": {"type": "object"}},
        }
    ),
]
StructuredOutputs: TypeAlias = Annotated[
    dict[str, Any],
    WithJsonSchema({"type": "object", "properties": {name: {} for name in _OUTPUTS}}),
]


def structure_of(
    response_format: Mapping[str, Any] | None, structured_outputs: Mapping[str, Any] | None
) -> Structure | None:
    """The one that was asked for, None for any text.

    Raises:
        PydanticCustomError: a fault of the field, as the validators of a request raise it.
    """
    formatted = None if response_format is None else _of_format(response_format)
    if structured_outputs is None:
        return formatted
    if formatted is not None:
        raise fault("invalid_value", "it excludes 'response_format'.", "structured_outputs")
    return _of_outputs(structured_outputs)


def _of_format(asked: Mapping[str, Any]) -> Structure | None:
    at = "response_format"
    kind = asked.get("type")
    if kind is None:
        raise fault("missing_required_parameter", "", f"{at}.type")
    if kind not in _FORMATS if isinstance(kind, str) else True:
        shown = ", ".join(f"'{one}'" for one in _FORMATS)
        raise fault("invalid_value", f"its type must be one of {shown}.", at)
    _no_others(asked, _FORMATS[kind], at)
    if kind == "text":
        return None
    if kind == "json_object":
        return Structure(kind="json_object")
    named = asked.get("json_schema")
    if not isinstance(named, dict):
        raise fault("invalid_json_schema", "it needs 'json_schema', an object.", at)
    _no_others(named, frozenset({"name", "description", "schema", "strict"}), f"{at}.json_schema")
    name, strict, schema = named.get("name"), named.get("strict"), named.get("schema")
    if not is_function_name(name):
        message = "it needs a 'name' of 1 to 64 letters, digits, '_' and '-'."
        raise fault("invalid_value", message, f"{at}.json_schema.name")
    if strict is not None and not isinstance(strict, bool):
        raise fault("invalid_type", "expected a boolean.", f"{at}.json_schema.strict")
    if not isinstance(schema, dict):
        raise fault("invalid_json_schema", "it needs a 'schema', an object.", at)
    return Structure(kind="json_schema", value=schema)


def _of_outputs(asked: Mapping[str, Any]) -> Structure:
    at = "structured_outputs"
    _no_others(asked, frozenset(_OUTPUTS), at)
    given = [name for name, value in asked.items() if value is not None and value is not False]
    if len(given) != 1:
        message = f"give exactly one of {', '.join(_OUTPUTS)}."
        raise fault("invalid_value", message, at)
    name = given[0]
    value = asked[name]
    if name == "json_object":
        if value is not True:
            raise fault("invalid_type", "expected a boolean.", f"{at}.{name}")
        return Structure(kind="json_object", param=at)
    if name == "json":
        if not isinstance(value, dict):
            raise fault("invalid_type", "expected a schema, an object.", f"{at}.{name}")
        return Structure(kind="json_schema", value=value, param=at)
    if name == "choice":
        if not (isinstance(value, list) and all(isinstance(text, str) for text in value)):
            raise fault("invalid_type", "expected an array of strings.", f"{at}.{name}")
        if not value:
            raise fault("empty_array", "expected at least one item.", f"{at}.{name}")
        if len(value) > MAX_CHOICES_LISTED or "" in value:
            message = f"expected 1 to {MAX_CHOICES_LISTED} texts, none of them empty."
            raise fault("invalid_value", message, f"{at}.{name}")
        return Structure(kind="choice", value=value, param=at)
    if not isinstance(value, str) or not value:
        raise fault("invalid_type", "expected a text.", f"{at}.{name}")
    return Structure(kind="regex" if name == "regex" else "grammar", value=value, param=at)


def _no_others(asked: Mapping[str, Any], known: frozenset[str], at: str) -> None:
    for name in asked:
        if name not in known:
            raise fault("unknown_parameter", "", f"{at}.{name[:64]}")
