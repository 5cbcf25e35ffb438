"""Each tier answers what its OpenAPI document says, whatever schemathesis sends to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from docs.make_tables import app_of
from tests.stack.processes import Stack, Tier, running

MODEL = "m"
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running(tmp_path_factory.mktemp("openapi")) as made:
        made.add_worker("--engine", "sim", "--model-names", MODEL, "--max-model-len", "512")
        made.wait_serving()
        yield made


@pytest.fixture(scope="module")
def schemas(stack: Stack) -> dict[str, Any]:
    return {"gateway": document(stack.gateway)}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A controller and a worker that know nobody: what is made up here reaches no other test."""
    folder = tmp_path_factory.mktemp("alone")
    flags = ("--engine", "sim", "--model-names", MODEL, "--max-model-len", "512", "--no-register")
    tiers = {
        "controller": Tier("controller", folder / "controller.log"),
        "worker": Tier("worker", folder / "worker.log", *flags),
    }
    try:
        for tier in tiers.values():
            tier.wait_ready()
        yield {name: document(tier) for name, tier in tiers.items()}
    finally:
        for tier in tiers.values():
            tier.kill()


def document(tier: Tier) -> Any:
    return schemathesis.openapi.from_url(f"{tier.url}/openapi.json")


def operations(tier: str, *, bodies: bool = False) -> list[tuple[str, str, str]]:
    """All of a tier's, or those that read a body."""
    paths = app_of(tier).openapi()["paths"]
    return [
        (tier, path, method.upper())
        for path, found in paths.items()
        for method, operation in found.items()
        if not bodies or "requestBody" in operation
    ]


def check(operation: Any, mode: GenerationMode, examples: int = 15) -> None:
    """Send so many requests of the operation; what fails is raised with the way to repeat it."""

    @settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def answered(case: Any) -> None:
        # a name of chance is a 404: nearly all calls are for the model that is there
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body["model"] = MODEL
        if case.headers.get("x-request-timeout-ms", "").isdecimal():
            del case.headers["x-request-timeout-ms"]  # a 504 of a limit of 1 ms is no fault
        case.call_and_validate(checks=CHECKS)

    answered()


@pytest.mark.parametrize(("tier", "path", "method"), operations("gateway"))
def test_what_the_document_allows_is_answered_as_it_says(
    schemas: dict[str, Any], tier: str, path: str, method: str
) -> None:
    check(schemas[tier][path][method], GenerationMode.POSITIVE)


@pytest.mark.parametrize(("tier", "path", "method"), operations("gateway", bodies=True))
def test_what_the_document_does_not_allow_is_answered_as_it_says(
    schemas: dict[str, Any], tier: str, path: str, method: str
) -> None:
    check(schemas[tier][path][method], GenerationMode.NEGATIVE)


@pytest.mark.parametrize(("tier", "path", "method"), operations("controller"))
def test_the_controller_answers_as_its_document_says(
    alone: dict[str, Any], tier: str, path: str, method: str
) -> None:
    check(alone[tier][path][method], GenerationMode.POSITIVE)


@pytest.mark.parametrize(("tier", "path", "method"), operations("worker"))
def test_the_worker_answers_as_its_document_says(
    alone: dict[str, Any], tier: str, path: str, method: str
) -> None:
    check(alone[tier][path][method], GenerationMode.POSITIVE)


@pytest.mark.parametrize(
    ("tier", "path", "method"),
    [*operations("controller", bodies=True), *operations("worker", bodies=True)],
)
def test_what_is_wrong_is_answered_as_the_document_says(
    alone: dict[str, Any], tier: str, path: str, method: str
) -> None:
    check(alone[tier][path][method], GenerationMode.NEGATIVE)
