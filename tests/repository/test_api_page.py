"""docs/api.md names every field, route and error code that the code knows, and no other route."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from gateway.openapi import DESCRIBED
from protocol import anthropic, create_response, fastchat, openai, response_items, texts
from protocol.errors import TAXONOMY
from trireme.service.health import HEALTH_PATHS

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
        texts.TokenizationRequest,
        texts.DetokenizationRequest,
        texts.ScoringRequest,
        texts.RerankRequest,
        fastchat.RegisterWorker,
        fastchat.WorkerStatus,
    ],
)
def test_every_field_is_described(model: Any) -> None:
    unnamed = set(model.model_fields) - WORDS - {"prompts"}
    assert unnamed == set()


INNER = {"ChatMessage", "GenerationFields", "StreamOptions", "TokenCheckPrompt"}
ALIKE = {"APIChatCompletionRequest", "CountTokensRequest", "TokenCheckRequest"}
"""Two are like others, one has nothing but a list."""


@pytest.mark.parametrize("name", sorted(INNER | {one.__name__ for one in DESCRIBED.bodies} - ALIKE))
def test_every_request_has_its_table_of_fields(name: str) -> None:
    assert f"<!-- fields: {name} -->" in TEXT, "docs/make_tables.py fills it"


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


OPEN = {*HEALTH_PATHS, "/openapi.json"}


@pytest.mark.parametrize("tier", ["gateway", "controller", "worker"])
def test_the_routes_of_a_tier_are_those_of_the_page(tier: str) -> None:
    assert served(tier) - OPEN == documented(tier.capitalize()) - OPEN
