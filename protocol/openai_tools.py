"""Tools of a chat request, and what a forced call makes of its answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeAlias

from pydantic import WithJsonSchema

from protocol.generation import Structure
from protocol.openai_fields import fault

MAX_TOOLS: Final = 128
_NAME_LENGTH: Final = 64
_NOTHING: Final = {"type": "object", "properties": {}, "additionalProperties": False}


Tools: TypeAlias = Annotated[
    list[Any],
    WithJsonSchema(
        {
            "type": "array",
            "minItems": 1,
            "maxItems": MAX_TOOLS,
            "items": {"type": "object", "required": ["type", "function"]},
        }
    ),
]


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What the tools of a request come to.

    Attributes:
        shown: the tools that the model is told of, as the request has them.
        forced: the answer must be calls of this form; None when it is a text.
        named: one certain function must be called.
    """

    shown: tuple[Mapping[str, Any], ...] = ()
    forced: Structure | None = None
    named: bool = False


def is_function_name(name: object) -> bool:
    """1 to 64 letters, digits, `_` and `-`."""
    if not isinstance(name, str) or len(name) > _NAME_LENGTH or not name.isascii():
        return False
    return name.replace("_", "a").replace("-", "a").isalnum()


def tool_use(tools: Sequence[Any] | None, choice: Any, *, parallel: bool) -> ToolUse:
    """What `tools`, `tool_choice` and `parallel_tool_calls` ask for.

    Raises:
        PydanticCustomError: a fault of one of them, as the validators of a request raise it.
    """
    if tools is None:
        if choice is not None and choice != "none":
            raise fault("invalid_request", "it needs 'tools'.", "tool_choice")
        return ToolUse()
    functions = _functions(tools)
    if choice == "none":
        return ToolUse()
    names, named, must = _wanted(choice, list(functions))
    if not must:
        allowed = [tool for tool in tools if tool["function"]["name"] in names]
        return ToolUse(tuple(allowed))
    value = {
        "functions": [{"name": name, "parameters": functions[name]} for name in names],
        "parallel": parallel and not named,
    }
    forced = Structure(kind="tools", value=value, param="tools")
    return ToolUse(tuple(tools), forced, named)


def _functions(tools: Sequence[Any]) -> dict[str, Any]:
    """Schemas of the arguments, by name."""
    if not tools:
        raise fault("empty_array", "expected at least one item, got an empty array.", "tools")
    if len(tools) > MAX_TOOLS:
        message = f"expected at most {MAX_TOOLS} items, got {len(tools)}."
        raise fault("array_above_max_length", message, "tools")
    found: dict[str, Any] = {}
    for i, tool in enumerate(tools):
        at = f"tools[{i}]"
        function = _function(tool, at)
        name, parameters = function.get("name"), function.get("parameters")
        if not isinstance(name, str) or not is_function_name(name):
            message = f"expected 1 to {_NAME_LENGTH} letters, digits, '_' and '-'."
            raise fault("invalid_value", message, f"{at}.function.name")
        if name in found:
            message = f"there are two functions of the name '{name}'."
            raise fault("invalid_value", message, f"{at}.function.name")
        if parameters is not None and not isinstance(parameters, dict):
            raise fault(
                "invalid_type", "expected a schema, an object.", f"{at}.function.parameters"
            )
        kind = (parameters or {}).get("type", "object")
        if kind != "object" and not (isinstance(kind, list) and "object" in kind):
            message = "expected a schema of type 'object'."
            raise fault("invalid_json_schema", message, f"{at}.function.parameters")
        found[name] = {**parameters, "type": "object"} if parameters else _NOTHING
    return found


def _function(tool: Any, at: str) -> Mapping[str, Any]:
    if not isinstance(tool, dict):
        raise fault("invalid_type", "expected an object.", at)
    if "type" not in tool:
        raise fault("missing_required_parameter", "", f"{at}.type")
    if tool["type"] != "function":
        raise fault("unsupported_parameter", "only 'function' is supported.", f"{at}.type")
    function = tool.get("function")
    if not isinstance(function, dict):
        raise fault("missing_required_parameter", "", f"{at}.function")
    for name in function:
        if name not in ("name", "description", "parameters", "strict"):
            raise fault("unknown_parameter", "", f"{at}.function.{name[:64]}")
    for name, kind in (("description", str), ("strict", bool)):
        if function.get(name) is not None and not isinstance(function[name], kind):
            raise fault("invalid_type", f"expected a {kind.__name__}.", f"{at}.function.{name}")
    return function


def _wanted(choice: Any, names: list[str]) -> tuple[list[str], bool, bool]:
    """The functions that may be called, whether it is a certain one, and whether one must be."""
    at = "tool_choice"
    if choice in (None, "auto", "required"):
        return names, False, choice == "required"
    if not isinstance(choice, dict):
        message = "expected 'none', 'auto', 'required' or an object."
        raise fault("invalid_value", message, at)
    if choice.get("type") != "allowed_tools":
        return [_named(choice, names)], True, True
    allowed = choice.get("allowed_tools")
    if not isinstance(allowed, dict) or not isinstance(allowed.get("tools"), list):
        raise fault("missing_required_parameter", "", f"{at}.allowed_tools.tools")
    mode = allowed.get("mode")
    if mode not in ("auto", "required"):
        message = "expected 'auto' or 'required'."
        raise fault("invalid_value", message, f"{at}.allowed_tools.mode")
    if not allowed["tools"]:
        raise fault("empty_array", "expected at least one item.", f"{at}.allowed_tools.tools")
    chosen = list(dict.fromkeys(_named(one, names) for one in allowed["tools"]))
    return chosen, False, mode == "required"


def _named(choice: Any, names: list[str]) -> str:
    """The function that `{"type": "function", "function": {"name": …}}` means."""
    at = "tool_choice"
    if not isinstance(choice, dict) or choice.get("type") != "function":
        raise fault("invalid_value", "its type must be 'function' or 'allowed_tools'.", at)
    function = choice.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    if name not in names:
        raise fault("invalid_request", "it names a function that is not in 'tools'.", at)
    return str(name)
