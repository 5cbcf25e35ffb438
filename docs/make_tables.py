"""Writes the tables of flags, metrics, alerts and request fields in the pages of docs/.

They are made from the code and from alerts.yml.

`python docs/make_tables.py` writes them, `--check` fails when they are not what it would write.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_origin

import httpx
import yaml
from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from gateway.capabilities import fields_of
from protocol import anthropic, create_response, openai, texts
from protocol.openai_fields import RequestFields
from trireme.service.server import ExitRequest
from trireme.service.settings import TierSettings

PAGES = tuple(Path(__file__).with_name(name) for name in ("operations.md", "api.md"))
SECTION = re.compile(
    r"(<!-- (flags|metrics|alerts|fields): (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL
)
REQUESTS = (openai, texts, create_response, anthropic)
TIERS = ("controller", "worker", "gateway")
SHARED_ENV = {
    "ssl_keyfile": "SSL_KEYFILE",
    "ssl_certfile": "SSL_CERTFILE",
    "cluster_token": "TRIREME_CLUSTER_TOKEN",
}


def settings_of(tier: str) -> type[TierSettings]:
    """The Settings class that `tier`'s config module defines."""
    module = importlib.import_module(f"{tier}.config")
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, TierSettings)
        and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise LookupError(f"{tier}.config defines {len(found)} Settings classes, not one")
    return found[0]


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _choices(annotation: Any) -> list[str]:
    """The values of a Literal, wherever it stands in the annotation."""
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    return [value for part in get_args(annotation) for value in _choices(part)]


def _limits(field: FieldInfo) -> str:
    bounds = {
        word: limit
        for part in field.metadata
        for name, word in (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below"))
        if (limit := getattr(part, name, None)) is not None
    }
    if "at least" in bounds and "at most" in bounds:
        return f"{bounds['at least']} to {bounds['at most']}"
    return ", ".join(f"{word} {limit}" for word, limit in bounds.items())


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is None or value == "" or value == ():
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        value = ",".join(map(str, value))
    return f"`{value}`"


def row(name: str, field: FieldInfo, env: str) -> str:
    """One line of a table: flag, environment, default, meaning."""
    meaning, default = field.description or "", _default(field)
    if not default and (derived := re.fullmatch(r"(.+) \((.+)\)", meaning)):
        # a description says in brackets at its end what takes the place of a missing default
        meaning, default = derived[1], "" if derived[2].startswith("or env") else derived[2]
    if choices := _choices(field.annotation):
        meaning += f" ({', '.join(f'`{choice}`' for choice in choices)})"
    elif limits := _limits(field):
        meaning += f" ({limits})"
    cells = (f"`{flag(name)}`", f"`{env}`", default, meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def flags(section: str) -> str:
    """The table of a tier's own flags, or with `shared` of those that all tiers take."""
    lines = "| Flag | Environment | Default | Meaning |\n|---|---|---|---|\n"
    if section == "shared":
        for name, field in TierSettings.model_fields.items():
            if name != "port":
                env = SHARED_ENV.get(name, f"TRIREME_<TIER>_{name.upper()}")
                lines += row(name, field, env)
        return lines
    for name, field in settings_of(section).model_fields.items():
        if name == "port" or name not in TierSettings.model_fields:
            lines += row(name, field, f"TRIREME_{section.upper()}_{name.upper()}")
    return lines


def metrics(tier: str) -> str:
    """The table of what a tier's `/metrics` shows: name, type, meaning."""
    text = asyncio.run(_scrape(tier))
    helps = dict(re.findall(r"^# HELP (\S+) (.*)$", text, flags=re.MULTILINE))
    kinds = re.findall(r"^# TYPE (\S+) (\S+)$", text, flags=re.MULTILINE)
    lines = "| Name | Type | Meaning |\n|---|---|---|\n"
    for name, kind in sorted(kinds):
        if not name.endswith("_created"):
            lines += f"| `{name}` | {kind} | {helps[name].rstrip('.')} |\n"
    return lines


def alerts(group: str) -> str:
    """The table of the alerting rules of a group: name, when it fires, what to do."""
    groups = yaml.safe_load(Path(__file__).with_name("alerts.yml").read_text())["groups"]
    [rules] = [one["rules"] for one in groups if one["name"] == group]
    lines = "| Alert | Fires when | What it means, what to do |\n|---|---|---|\n"
    for rule in rules:
        lasts = f" for {rule['for']}" if "for" in rule else ""
        told = rule["annotations"]
        when = rule["expr"].replace("|", "\\|")
        lines += f"| `{rule['alert']}` | `{when}`{lasts} | {told['summary']} {told['action']} |\n"
    return lines


async def _scrape(tier: str) -> str:
    transport = httpx.ASGITransport(app_of(tier))
    async with httpx.AsyncClient(transport=transport, base_url="http://tier") as client:
        return (await client.get("/metrics")).text


def app_of(tier: str) -> FastAPI:
    """The tier's app as its defaults make it; nothing is started."""
    settings = settings_of(tier)()
    create_app = importlib.import_module(f"{tier}.app").create_app
    if tier == "worker":
        made = create_app(settings, address="http://localhost", exit_request=ExitRequest())
        return cast(FastAPI, made.app)
    return cast(FastAPI, create_app(settings))


def fields(name: str) -> str:
    """The table of a request's own fields; those that chat and completions share are in the table
    of `GenerationFields`."""
    model: type[RequestFields] = next(vars(one)[name] for one in REQUESTS if name in vars(one))
    inherits = issubclass(model, openai.GenerationFields) and model is not openai.GenerationFields
    lines = "| Field | Default | Meaning and limits |\n|---|---|---|\n"
    for field, entry in fields_of(model).items():
        if field == "model" or not inherits or field in model.__annotations__:
            lines += field_row(field, entry)
    return lines


def field_row(name: str, entry: Mapping[str, Any]) -> str:
    """One line of a table: field, default, meaning with what is accepted."""
    given = entry.get("default")
    nothing = given in (None, [], {}) or isinstance(given, BaseModel)
    default = "none" if nothing else f"`{json.dumps(given)}`"
    meaning = entry["description"]
    match entry["support"]:
        case "refused":
            meaning = f"refused: {meaning}"
        case "default_only":
            meaning = f"only {_accepted(entry['accepts'])}: {meaning}"
        case _:
            if entry.get("no_effect") and "without effect" not in meaning:
                meaning += "; without effect"
            accepted = _accepted(entry["accepts"])
            meaning += f" ({accepted})" if accepted else ""
    cells = (f"`{name}`", "required" if entry.get("required") else default, meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _accepted(schema: Mapping[str, Any]) -> str:
    """The limits of a JSON schema in words; empty where the type has none."""
    if "enum" in schema:
        return " or ".join(f"`{json.dumps(one)}`" for one in schema["enum"])
    for one in schema.get("anyOf", ()):
        if "maxItems" in one:  # one value stands for a list of one
            return _accepted(one)
    parts = [
        _range(schema, "minimum", "maximum", ""),
        _range(schema, "minLength", "maxLength", " characters"),
        _range(schema, "minItems", "maxItems", " items"),
        _range(schema, "minProperties", "maxProperties", " entries"),
    ]
    for key in ("items", "additionalProperties"):
        inner = schema.get(key)
        each = _accepted(inner) if isinstance(inner, dict) else ""
        parts.append(f"each {each}" if each else "")
    return ", ".join(part for part in parts if part)


def _range(schema: Mapping[str, Any], least: str, most: str, unit: str) -> str:
    """Both ends in words, but for those of the 32 and 64 bits that every number has."""
    low, high = schema.get(least), schema.get(most)
    if "exclusiveMinimum" in schema and least == "minimum":
        return f"above {schema['exclusiveMinimum']}, at most {high}{unit}"
    if high is not None and high >= 2**31 - 1:
        high = None
    if low is not None and low <= -(2**31):
        low = None
    if high is None:
        return (
            "" if low is None else f"at least {low}{unit}" if low != 1 or not unit else "not empty"
        )
    return f"at most {high:,}{unit}" if low is None else f"{low} to {high:,}{unit}"


TABLES: dict[str, Callable[[str], str]] = {
    "flags": flags,
    "metrics": metrics,
    "alerts": alerts,
    "fields": fields,
}


def render(page: str) -> str:
    """The page with every table made anew."""
    return SECTION.sub(lambda part: f"{part[1]}\n{TABLES[part[2]](part[3])}\n{part[5]}", page)


def main() -> int:
    stale = {}
    for page in PAGES:
        made = render(page.read_text())
        if made != page.read_text():
            stale[page] = made
    if sys.argv[1:] != ["--check"]:
        for page, made in stale.items():
            page.write_text(made)
        return 0
    for page in stale:
        print(f"{page.name}: the tables are out of date: run make fmt")
    return int(bool(stale))


if __name__ == "__main__":
    sys.exit(main())
