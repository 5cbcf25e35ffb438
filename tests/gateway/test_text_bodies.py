"""Bodies of the routes beside OpenAI's: each fault is named, and has a valid neighbour."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_core import to_json

from gateway.body import parse
from gateway.translate import tokenize_request
from protocol.errors import TriremeError
from protocol.texts import (
    DetokenizationRequest,
    RerankRequest,
    ScoringRequest,
    TokenizationRequest,
)

HELLO = [{"role": "user", "content": "hi"}]
DONE = [*HELLO, {"role": "assistant", "content": "well"}]
TOOL = {"type": "function", "function": {"name": "f"}}
MODELS: dict[str, type[BaseModel]] = {
    "tokenize": TokenizationRequest,
    "detokenize": DetokenizationRequest,
    "score": ScoringRequest,
    "rerank": RerankRequest,
}
ABSENT, TYPE, VALUE = "missing_required_parameter", "invalid_type", "invalid_value"
EMPTY, MANY = "empty_array", "array_above_max_length"


def read(kind: str, fields: dict[str, Any]) -> Any:
    return parse(to_json({"model": "m", **fields}), MODELS[kind])


ROWS: list[tuple[str, dict[str, Any], str, str, dict[str, Any]]] = [
    ("tokenize", {}, "prompt", ABSENT, {"prompt": ""}),
    ("tokenize", {"model": "", "prompt": "a"}, "model", VALUE, {"prompt": "a"}),
    ("tokenize", {"prompt": ["a"]}, "prompt", TYPE, {"prompt": "a", "messages": None}),
    ("tokenize", {"prompt": "a", "messages": HELLO}, "messages", VALUE, {"messages": HELLO}),
    ("tokenize", {"messages": []}, "messages", EMPTY, {"messages": DONE}),
    ("tokenize", {"messages": [1]}, "messages[0]", TYPE, {"messages": HELLO}),
    ("tokenize", {"prompt": "a", "add_special_tokens": 1}, "add_special_tokens", TYPE,
     {"prompt": "a", "add_special_tokens": None}),
    ("tokenize", {"prompt": "a", "tools": [TOOL]}, "tools", "invalid_request",
     {"messages": HELLO, "tools": [TOOL]}),
    ("tokenize", {"messages": HELLO, "tools": []}, "tools", EMPTY, {"messages": HELLO}),
    ("tokenize", {"messages": HELLO, "chat_template": "x"}, "chat_template", "unknown_parameter",
     {"messages": HELLO, "chat_template_kwargs": {"a": 1}}),
    ("tokenize", {"messages": HELLO, "continue_final_message": True}, "continue_final_message",
     VALUE, {"messages": DONE, "continue_final_message": True}),
    ("tokenize",
     {"messages": DONE, "continue_final_message": True, "add_generation_prompt": True},
     "continue_final_message", VALUE,
     {"messages": DONE, "continue_final_message": True, "add_generation_prompt": False}),
    ("detokenize", {}, "tokens", ABSENT, {"tokens": []}),
    ("detokenize", {"tokens": "a"}, "tokens", TYPE, {"tokens": [0]}),
    ("detokenize", {"tokens": [1, -1]}, "tokens[1]", "integer_below_min_value", {"tokens": [1]}),
    ("detokenize", {"tokens": [2**31]}, "tokens[0]", "integer_above_max_value",
     {"tokens": [2**31 - 1]}),
    ("detokenize", {"tokens": [0] * (2**20 + 1)}, "tokens", MANY, {"tokens": [0] * 2**20}),
    ("score", {}, "text_1", ABSENT, {"text_1": "a", "text_2": "b"}),
    ("score", {"text_1": "a"}, "text_2", ABSENT, {"text_1": "a", "text_2": ""}),
    ("score", {"queries": "a"}, "documents", ABSENT, {"queries": "a", "documents": ["b", "c"]}),
    ("score", {"queries": "a", "documents": "b", "text_1": "c"}, "text_1", VALUE,
     {"queries": "a", "documents": "b", "text_1": None}),
    ("score", {"text_1": ["a", "b"], "text_2": ["c"]}, "text_1", VALUE,
     {"text_1": ["a", "b"], "text_2": ["c", "d"]}),
    ("score", {"text_1": "a", "text_2": []}, "text_2", EMPTY, {"text_1": ["a"], "text_2": ["b"]}),
    ("score", {"text_1": "a", "text_2": ["b"] * 2049}, "text_2", MANY,
     {"text_1": "a", "text_2": ["b"] * 2048}),
    ("score", {"text_1": "a", "text_2": ["b", 1]}, "text_2[1]", TYPE,
     {"text_1": "a", "text_2": ["b", "1"]}),
    ("rerank", {"documents": ["a"]}, "query", ABSENT, {"query": "q", "documents": ["a"]}),
    ("rerank", {"query": "q", "documents": []}, "documents", EMPTY,
     {"query": "q", "documents": [{"text": "a"}, "b"]}),
    ("rerank", {"query": "q", "documents": ["a", {"txt": "b"}]}, "documents[1].text", ABSENT,
     {"query": "q", "documents": ["a"], "top_n": None}),
    ("rerank", {"query": "q", "documents": ["a", 5]}, "documents[1]", TYPE,
     {"query": "q", "documents": ["a", "5"]}),
    ("rerank", {"query": "q", "documents": ["a"] * 2049}, "documents", MANY,
     {"query": "q", "documents": ["a"] * 2048}),
    ("rerank", {"query": "q", "documents": ["a"], "top_n": -1}, "top_n",
     "integer_below_min_value", {"query": "q", "documents": ["a"], "top_n": 5}),
    ("rerank", {"query": "q", "documents": ["a"], "return_documents": "no"}, "return_documents",
     TYPE, {"query": "q", "documents": ["a"], "return_documents": False}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "fields", "param", "code"), [row[:4] for row in ROWS], ids=lambda one: str(one)[:40]
)
def test_a_fault_is_named(kind: str, fields: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(TriremeError) as caught:
        read(kind, fields)
    assert (caught.value.param, caught.value.code) == (param, code)
    assert caught.value.spec.status == 400


@pytest.mark.parametrize(
    ("kind", "fields"), [(row[0], row[4]) for row in ROWS], ids=lambda one: str(one)[:40]
)
def test_its_neighbour_is_accepted(kind: str, fields: dict[str, Any]) -> None:
    read(kind, fields)


@pytest.mark.parametrize(
    ("fields", "special"),
    [
        ({"prompt": "a"}, None),
        ({"prompt": "a", "add_special_tokens": False}, False),
        ({"messages": HELLO}, None),
        ({"messages": HELLO, "add_special_tokens": False}, None),
        ({"messages": HELLO, "add_special_tokens": True}, True),
    ],
)
def test_special_tokens_of_messages_are_those_of_a_chat_unless_more_are_asked_for(
    fields: dict[str, Any], special: bool | None
) -> None:
    assert tokenize_request(read("tokenize", fields)).add_special_tokens is special


def test_what_a_template_is_told_reaches_the_worker() -> None:
    fields = {"tools": [TOOL], "chat_template_kwargs": {"a": 1}, "add_generation_prompt": False}
    wanted = tokenize_request(
        read("tokenize", {"messages": HELLO, **fields, "return_token_strs": True})
    )
    assert wanted.messages == HELLO
    assert wanted.tools == [TOOL]
    assert wanted.chat_template_kwargs == {"a": 1}
    assert (wanted.add_generation_prompt, wanted.entries) == (False, True)
    going_on = tokenize_request(
        read("tokenize", {"messages": DONE, "continue_final_message": True})
    )
    assert (going_on.add_generation_prompt, going_on.continue_final_message) == (False, True)
