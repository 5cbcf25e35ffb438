"""OpenAI's schemas: the names that the seed's users import, and what their answers look like."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import shortuuid
from openai.types import CreateEmbeddingResponse, Model
from pydantic import BaseModel, ValidationError

from protocol import openai as schemas
from protocol import openai_responses
from protocol.errors import TAXONOMY, ErrorCode
from protocol.openai import (
    ChatCompletionRequest,
    CompletionRequest,
    EmbeddingsRequest,
    EmbeddingsResponse,
    ErrorResponse,
    ModelCard,
    ModelList,
    ModelPermission,
    UsageInfo,
)
from protocol.openai_fields import RequestFields

REQUESTS = (
    ChatCompletionRequest,
    schemas.APIChatCompletionRequest,
    CompletionRequest,
    EmbeddingsRequest,
    schemas.TokenCheckRequest,
)


@pytest.mark.parametrize("name", schemas.__all__)
def test_every_exported_name_is_a_schema(name: str) -> None:
    assert issubclass(getattr(schemas, name), BaseModel)


def test_importing_the_schemas_is_light() -> None:
    code = (
        "import sys, protocol.openai; print([m for m in ('fastapi', 'torch') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("model", REQUESTS)
def test_every_request_has_a_json_schema(model: type[BaseModel]) -> None:
    schema = model.model_json_schema()
    assert schema["additionalProperties"] is False
    json.dumps(schema)


def below(model: type[BaseModel]) -> set[type[BaseModel]]:
    return {model}.union(*(below(one) for one in model.__subclasses__()))


@pytest.mark.parametrize(
    "model",
    sorted(below(RequestFields) | below(openai_responses._Answer), key=lambda one: one.__name__),
)
def test_every_field_of_a_request_or_an_answer_has_a_description(model: type[BaseModel]) -> None:
    bare = [name for name, field in model.model_fields.items() if not field.description]
    assert bare == [], "write a text in three quotes below the field"


def test_the_schema_of_a_marked_field_tells_what_is_accepted() -> None:
    properties = ChatCompletionRequest.model_json_schema()["properties"]
    assert properties["store"]["enum"] == [False]
    assert properties["modalities"]["enum"] == [["text"]]
    assert properties["audio"]["type"] == "null"


def test_a_request_cannot_be_changed() -> None:
    request = ChatCompletionRequest.model_validate(
        {"model": "m", "messages": [{"role": "user", "content": "a"}]}
    )
    with pytest.raises(ValidationError, match="frozen"):
        request.model = "n"  # type: ignore[misc]


def test_validation_errors_of_our_own_are_codes_of_the_taxonomy() -> None:
    with pytest.raises(ValidationError) as caught:
        CompletionRequest.model_validate({"model": "m", "prompt": [], "logit_bias": 5})
    assert [error["type"] in TAXONOMY for error in caught.value.errors()] == [True, True]


def test_a_model_card_is_the_seeds_and_openais() -> None:
    card = ModelCard(id="m", root="m", permission=[ModelPermission()]).model_dump()
    Model.model_validate(card, strict=True)
    assert card.keys() == {
        *("id", "object", "created", "owned_by", "root", "parent", "permission"),
        "max_model_len",
    }
    (permission,) = card["permission"]
    prefix, _, unique = permission["id"].partition("-")
    assert prefix == "modelperm"
    assert len(unique) == 22
    assert set(unique) <= set(shortuuid.get_alphabet())
    assert permission["organization"] == "*"
    assert ModelList().model_dump() == {"object": "list", "data": []}


def test_a_null_that_was_set_is_sent_and_an_unset_field_is_not() -> None:
    usage = UsageInfo(prompt_tokens=1, total_tokens=1)
    answer = EmbeddingsResponse(object="list", data=[], model="m", usage=usage)
    fields = json.loads(answer.to_json())
    CreateEmbeddingResponse.model_validate(fields, strict=True)
    assert fields["usage"] == {"prompt_tokens": 1, "total_tokens": 1}
    message = schemas.ChatResponseMessage(role="assistant", content="a", refusal=None)
    assert json.loads(message.to_json()) == {"role": "assistant", "content": "a", "refusal": None}


def test_an_error_has_both_dialects_codes() -> None:
    body = {"message": "m", "type": "t", "param": None, "code": None}
    error = ErrorResponse.model_validate({"error": body, "error_code": 40001})
    assert ErrorCode(error.error_code) is ErrorCode.VALIDATION_TYPE_ERROR
