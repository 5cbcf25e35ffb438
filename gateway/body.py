"""A request's body becomes its one valid type here, or an error of the taxonomy."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, from_json

from gateway.edge import header
from gateway.errors import named_field
from protocol.errors import TAXONOMY, TriremeError, quoted
from protocol.openai_fields import UNION_TAG
from trireme.service.streaming import whole_body

_Model = TypeVar("_Model", bound=BaseModel)

_UNPARSABLE: Final = "We could not parse the JSON body of your request."

_TOO_DEEP: Final = re.compile(
    r"recursion limit exceeded at line (?P<line>\d+) column (?P<column>\d+)"
)
"""What pydantic's JSON parser says of a body that nests deeper than it goes."""

_WITH_SCHEMAS: Final = frozenset({"response_format", "structured_outputs", "tools"})

_ANSWER_CHANGING: Final = frozenset(
    "best_of chat_template documents grammar guided_choice guided_grammar guided_json guided_regex "
    "json_schema kv_transfer_params lora_adapter prompt_embeds prompt_token_ids regex schema "
    "thinking tool_resources truncate_prompt_tokens".split()
)
"""Unknown fields that are refused even when the gateway is lenient."""

_NOW_CALLED: Final = {
    "guided_choice": "structured_outputs.choice",
    "guided_grammar": "structured_outputs.grammar",
    "guided_json": "structured_outputs.json",
    "guided_regex": "structured_outputs.regex",
}
"""Fields of other servers that have another name here."""


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole JSON body.

    Raises:
        TriremeError: `unsupported_content_type`, or `request_too_large` with or without a
            Content-Length.
        ClientDisconnect: the client went away while it sent.
    """
    content_type = (header(request.scope, b"content-type") or "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        shown = quoted(content_type) if content_type else "none"
        raise TriremeError(
            "unsupported_content_type",
            f"Unsupported Content-Type: {shown}. Send application/json.",
        )
    declared = header(request.scope, b"content-length") or ""
    if declared.isdecimal() and int(declared[:20]) > max_bytes:
        raise _too_large(max_bytes)
    body = await whole_body(request.receive, max_bytes)
    if body is None:
        raise _too_large(max_bytes)
    return body


def _too_large(max_bytes: int) -> TriremeError:
    message = f"The request body exceeds the limit of {max_bytes} bytes."
    return TriremeError("request_too_large", message)


def parse(
    body: bytes,
    model: type[_Model],
    *,
    lenient: bool = False,
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> _Model:
    """The body as `model`; the first fault is the answer.

    Args:
        lenient: drop unknown fields unless they would change the answer.
        defaults: fields taken where the body has none, or null.

    Raises:
        TriremeError: with the code and `param` that the fault has.
    """
    try:
        fields = from_json(body, allow_inf_nan=False, cache_strings="keys")
    except ValueError as error:
        raise _unparsable(body, str(error)) from error
    if not isinstance(fields, dict):
        raise TriremeError("invalid_type", "The body must be a JSON object.")
    fields.update((k, v) for k, v in defaults.items() if fields.get(k) is None)
    if lenient:
        known = model.model_fields.keys() | _ANSWER_CHANGING
        fields = {name: value for name, value in fields.items() if name in known}
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    raise error_of(first) from None


# ---- pydantic's errors in our terms -------------------------------------------------------------


def error_of(details: ErrorDetails) -> TriremeError:
    """What pydantic found wrong, with the code and `param` that it has here."""
    context = details.get("ctx", {})
    param = _param(details["loc"], context.get("at"))
    code = _code_of(details)
    return TriremeError(code, _message(code, param, details, context), param=param)


def _param(loc: tuple[int | str, ...], at: str | None) -> str | None:
    path = ""
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not part.startswith(UNION_TAG):
            path += f".{part}" if path else part
    if at:
        path = f"{path}.{at}" if path else at
    return named_field(path)[:100] or None


def _code_of(details: ErrorDetails) -> str:
    kind, value = details["type"], details["input"]
    if kind in TAXONOMY:
        return kind
    number = "integer" if isinstance(value, int) else "decimal"
    limits = details.get("ctx", {})
    if isinstance(limits.get("le", limits.get("ge", limits.get("gt", limits.get("lt")))), float):
        number = "decimal"
    return {
        "missing": "missing_required_parameter",
        "extra_forbidden": "unknown_parameter",
        "literal_error": "invalid_value",
        "finite_number": "invalid_value",
        "string_too_short": "invalid_value",
        "string_too_long": "string_above_max_length",
        "too_short": "empty_array",
        "too_long": "array_above_max_length",
        "greater_than": f"{number}_below_min_value",
        "greater_than_equal": f"{number}_below_min_value",
        "less_than": f"{number}_above_max_value",
        "less_than_equal": f"{number}_above_max_value",
    }.get(kind, "invalid_type")


def _message(code: str, param: str | None, details: ErrorDetails, context: dict[str, Any]) -> str:
    given = details["input"]
    if code == "missing_required_parameter":
        return f"Missing required parameter: '{param}'."
    if code == "unknown_parameter" and not context.get("message"):
        instead = f" Use '{_NOW_CALLED[param]}'." if param in _NOW_CALLED else ""
        return f"Unknown parameter: '{quoted(param)}'.{instead}"
    if "message" in context:
        lead = {
            "invalid_type": f"Invalid type for '{param}': ",
            "unsupported_parameter": f"Unsupported value or parameter '{param}': ",
        }.get(code, f"Invalid '{param}': ")
        return lead + str(context["message"])
    if code == "invalid_type":
        return f"Invalid type for '{param}': {_lower(details['msg'])}, got {_type_name(given)}."
    shown = f", got {quoted(given)}" if isinstance(given, str | int | float) and given != "" else ""
    return f"Invalid '{param}': {_lower(details['msg'])}{shown}."


_JSON_WORDS: Final = (
    ("valid dictionary", "object"),
    ("a object", "an object"),
    ("valid list", "array"),
    ("a array", "an array"),
    ("list should have", "array should have"),
    (" after validation, not ", ", got "),
)


def _lower(message: str) -> str:
    words = message[:1].lower() + message[1:]
    for python, json_word in _JSON_WORDS:
        words = words.replace(python, json_word)
    return words


def _type_name(value: object) -> str:
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "an integer", float: "a decimal", str: "a string"}
    return names.get(type(value), "an array" if isinstance(value, list) else "an object")


# ---- bodies that are no JSON --------------------------------------------------------------------


def _unparsable(body: bytes, reason: str) -> TriremeError:
    """Told apart are half a character in a text, because clients send it by mistake, and a schema
    that is deeper than the parser goes."""
    deep = _deep_field(body, reason)
    if deep in _WITH_SCHEMAS:
        message = f"Invalid '{deep}': it is nested too deep to be read."
        return TriremeError("invalid_json_schema", message, param=deep)
    param = _half_character(body) if b"\\ud" in body.lower() else None
    if param is None:
        return TriremeError("invalid_body", _UNPARSABLE)
    message = f"Invalid '{param}': it holds half of a surrogate pair."
    return TriremeError("invalid_value", message, param=param)


def _deep_field(body: bytes, reason: str) -> str | None:
    """The field below which a body nests deeper than the parser goes: the last one before there."""
    place = _TOO_DEEP.match(reason)
    if place is None:
        return None
    line, column = int(place["line"]), int(place["column"])
    before = body.split(b"\n", line)[:line]
    start = b"\n".join([*before[:-1], before[-1][: column - 1]])
    fields = from_json(start, allow_partial=True)
    return next(reversed(fields), None) if isinstance(fields, dict) else None


def _half_character(body: bytes) -> str | None:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return None
    for path, text in _texts(fields):
        if any("\ud800" <= ch <= "\udfff" for ch in text):
            return quoted(path)
    return None


def _texts(root: Any) -> Iterator[tuple[str, str]]:
    """All texts below `root` with their paths; no recursion."""
    waiting: list[tuple[str, Any]] = [("", root)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, str):
            yield path, value
        elif isinstance(value, dict):
            waiting += [(f"{path}.{key}".lstrip("."), item) for key, item in value.items()]
        elif isinstance(value, list):
            waiting += [(f"{path}[{i}]", item) for i, item in enumerate(value)]
