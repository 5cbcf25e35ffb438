"""docs/api.md names every field, route and error code that the code knows, and no other route."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from protocol import anthropic, create_response, fastchat, openai, response_items
from protocol.errors import TAXONOMY

DOCS = Path(__file__).resolve().parents[2] / "docs"
TEXT = (DOCS / "api.md").read_text()
WORDS = set(re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)))
WORDS |= {word for words in WORDS for word in re.split(r"[\s.]+", words)}


@pytest.mark.parametrize(
    "model",
    [
        openai.ChatCompletionRequest,
        openai.ChatMessage,
        openai.CompletionRequest,
        openai.EmbeddingsRequest,
        openai.StreamOptions,
        create_response.CreateResponse,
        create_response.FunctionTool,
        response_items.MessageItem,
        anthropic.MessagesRequest,
        anthropic.Tool,
        anthropic.ToolResultBlock,
        openai.TokenCheckRequest,
        openai.ModelCard,
        fastchat.RegisterWorker,
        fastchat.WorkerStatus,
    ],
)
def test_every_field_is_described(model: Any) -> None:
    unnamed = set(model.model_fields) - WORDS - {"prompts"}
    assert unnamed == set()


def section(heading: str) -> str:
    return TEXT.split(f"\n### {heading}\n")[1].split("\n### ")[0].split("\n## ")[0]


@pytest.mark.parametrize(
    ("heading", "model"),
    [
        ("Chat completions", openai.ChatCompletionRequest),
        ("Completions", openai.CompletionRequest),
        ("Common fields", openai.ChatCompletionRequest),
        ("Common fields", openai.CompletionRequest),
        ("Responses", create_response.CreateResponse),
        ("Messages", anthropic.MessagesRequest),
        ("Embeddings", openai.EmbeddingsRequest),
    ],
)
def test_the_defaults_of_the_page_are_those_of_the_code(heading: str, model: Any) -> None:
    rows = re.findall(r"^\| (`.+?`) \| (.+?) \|", section(heading), flags=re.MULTILINE)
    assert rows
    for names, written in rows:
        for name in re.findall(r"`(\w+)`", names):
            field = model.model_fields[name]
            words = written.strip("`")
            if words == "required":
                assert field.is_required(), name
            elif words in ("true", "false"):
                assert field.default is (words == "true"), name
            elif re.fullmatch(r"-?[\d.]+", words):
                assert field.default == float(words), name
            else:
                default = field.get_default(call_default_factory=True)
                if isinstance(default, BaseModel):
                    default = default.model_dump(exclude_defaults=True)
                assert default in (None, [], {}, words), name


def test_every_error_code_is_described() -> None:
    assert {code for code, spec in TAXONOMY.items() if spec.public} - WORDS == set()


def test_an_error_code_stands_beside_its_own_status() -> None:
    wrong = []
    for line in re.findall(r"^\| \d\d\d \|.*$", TEXT, flags=re.MULTILINE):
        status, codes, numbers = (cell.strip() for cell in line.split("|")[1:4])
        for code in re.findall(r"`(\w+)`", codes):
            spec = TAXONOMY[code]
            if str(spec.status) != status or str(int(spec.number)) not in numbers:
                wrong.append(code)
    assert wrong == []


def documented(heading: str) -> set[str]:
    section = TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    paths = re.findall(r"`(/[^`\s]+)`", section)
    return {re.sub(r"\{[^}]*\}", "{}", path) for path in paths}


def served(tier: str) -> set[str]:
    sys.path.insert(0, str(DOCS))
    try:
        import make_tables
    finally:
        sys.path.pop(0)
    paths = make_tables.app_of(tier).openapi()["paths"]
    return {re.sub(r"\{[^}]*\}", "{}", path) for path in paths}


HEALTH = {"/health", "/healthz", "/livez", "/ping", "/readyz", "/version", "/metrics"}


@pytest.mark.parametrize("tier", ["gateway", "controller", "worker"])
def test_the_routes_of_a_tier_are_those_of_the_page(tier: str) -> None:
    assert served(tier) - HEALTH == documented(tier.capitalize()) - HEALTH
