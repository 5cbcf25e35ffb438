"""Requests of the Messages API in terms of the native wire; what is refused, and how."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.body import parse
from gateway.messages.translate import generate_request, tokenize_request
from protocol.anthropic import CountTokensRequest, MessagesRequest
from protocol.errors import TriremeError
from protocol.generation import GenerateRequest

USER = {"role": "user", "content": "hi"}
SCHEMA = {"type": "object", "properties": {}, "additionalProperties": False}
TOOL = {"name": "look", "description": "Looks.", "input_schema": SCHEMA}
CALL = {"type": "tool_use", "id": "t1", "name": "look", "input": {"at": "ö"}}
RESULT = {"type": "tool_result", "tool_use_id": "t1", "content": "seen"}
CALLED = {"role": "assistant", "content": [{"type": "text", "text": "Let me."}, CALL]}


def asked(**fields: Any) -> MessagesRequest:
    body = {"model": "m", "max_tokens": 2000, "messages": [USER], **fields}
    return parse(json.dumps(body).encode(), MessagesRequest)


def wire(**fields: Any) -> GenerateRequest:
    return generate_request(asked(**fields), request_id="r", deadline_s=5.0, cache_salt="salt")


def turns(*messages: Any, **fields: Any) -> Any:
    return wire(messages=list(messages), **fields).messages


def test_a_plain_request_has_anthropics_defaults() -> None:
    request = wire()
    assert request.messages == [USER]
    assert (request.conv_stops, request.parse, request.whole) == (True, True, True)
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (2000, 1.0, 1.0)
    assert (sampling.top_k, sampling.stop) == (-1, [])
    assert (request.thinking, request.reasoning_effort) == (None, None)
    assert request.add_generation_prompt
    assert not request.continue_final_message


def test_options_reach_the_worker() -> None:
    request = wire(temperature=0.5, top_k=3, stop_sequences=["a", "b"], stream=True)
    assert (request.sampling.temperature, request.sampling.top_k) == (0.5, 3)
    assert request.sampling.stop == ["a", "b"]
    assert not request.whole


def test_the_system_prompt_stands_first() -> None:
    blocks = [
        {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "b"},
    ]
    assert turns(USER, system=blocks) == [{"role": "system", "content": "a\nb"}, USER]
    assert turns(USER, system="") == [USER]
    again = {"role": "system", "content": "b"}
    assert turns(again, USER, system="a") == [{"role": "system", "content": "a\nb"}, USER]


def test_calls_and_results_are_those_of_chat() -> None:
    thought = {"type": "thinking", "thinking": "Hm.", "signature": ""}
    called = {"role": "assistant", "content": [thought, *CALLED["content"]]}
    answer = {"role": "user", "content": [RESULT, {"type": "text", "text": "And?"}]}
    function = {"name": "look", "arguments": '{"at": "ö"}'}
    assert turns(USER, called, answer) == [
        USER,
        {
            "role": "assistant",
            "content": "Let me.",
            "reasoning_content": "Hm.",
            "tool_calls": [{"id": "t1", "type": "function", "function": function}],
        },
        {"role": "tool", "content": "seen", "tool_call_id": "t1"},
        {"role": "user", "content": "And?"},
    ]


def test_a_failed_result_says_so() -> None:
    failed = {**RESULT, "is_error": True, "content": [{"type": "text", "text": "no such place"}]}
    assert turns(USER, CALLED, {"role": "user", "content": [failed]})[-1] == {
        "role": "tool",
        "content": "Error: no such place",
        "tool_call_id": "t1",
    }


def test_turns_of_one_role_are_one() -> None:
    assert turns(USER, {"role": "user", "content": "there"}) == [
        {"role": "user", "content": "hi\nthere"}
    ]


def test_a_last_turn_of_the_assistants_is_gone_on_with() -> None:
    request = wire(messages=[USER, {"role": "assistant", "content": "Well,"}])
    assert (request.add_generation_prompt, request.continue_final_message) == (False, True)


def test_tools_and_choices_come_as_those_of_chat() -> None:
    described = {"name": "look", "parameters": SCHEMA, "description": "Looks."}
    request = wire(tools=[TOOL])
    assert request.tools == [{"type": "function", "function": described}]
    assert (request.structure, request.parallel_tool_calls) == (None, True)
    for choice in ({"type": "any"}, {"type": "tool", "name": "look"}):
        forced = wire(tools=[TOOL], tool_choice=choice).structure
        assert forced is not None
        assert forced.value["functions"] == [{"name": "look", "parameters": SCHEMA}]
    assert wire(tools=[TOOL], tool_choice={"type": "none"}).tools is None
    one = wire(tools=[TOOL], tool_choice={"type": "auto", "disable_parallel_tool_use": True})
    assert not one.parallel_tool_calls


def test_a_format_is_a_structure() -> None:
    form = {"type": "json_schema", "schema": SCHEMA}
    structure = wire(output_config={"format": form}).structure
    assert structure is not None
    assert (structure.kind, structure.value) == ("json_schema", SCHEMA)
    assert structure.param == "output_config.format"


@pytest.mark.parametrize(
    ("thinking", "wanted"),
    [
        ({"type": "enabled", "budget_tokens": 1024}, True),
        ({"type": "disabled"}, False),
        ({"type": "adaptive"}, None),
    ],
)
def test_thinking_is_a_switch(thinking: dict[str, Any], wanted: bool | None) -> None:
    assert wire(thinking=thinking).thinking is wanted
    assert wire(output_config={"effort": "low"}).reasoning_effort == "low"


def test_tokens_are_counted_of_the_same_prompt() -> None:
    fields = {
        "model": "m",
        "messages": [USER, {"role": "assistant", "content": "Well,"}],
        "system": "Be short.",
        "tools": [TOOL],
        "thinking": {"type": "disabled"},
    }
    counted = tokenize_request(parse(json.dumps(fields).encode(), CountTokensRequest))
    generated = wire(**fields)
    assert counted.add_special_tokens is None, "as a generation has them"
    shared = type(counted).model_fields.keys() & type(generated).model_fields.keys()
    for name in shared - {"add_special_tokens"}:
        assert getattr(counted, name) == getattr(generated, name), name


IMAGE = {"type": "image", "source": {"type": "url", "url": "http://127.0.0.1/x"}}
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"foo": 1}, "foo", "unknown_parameter"),
    ({"max_tokens": 0}, "max_tokens", "integer_below_min_value"),
    ({"messages": []}, "messages", "empty_array"),
    ({"messages": [{"role": "wizard", "content": ""}]}, "messages[0].role", "invalid_value"),
    (
        {"messages": [{"role": "user", "content": None}]},
        "messages[0].content",
        "invalid_type",
    ),
    (
        {"messages": [{"role": "user", "content": [IMAGE]}]},
        "messages[0].content[0].type",
        "unsupported_parameter",
    ),
    (
        {"messages": [{"role": "user", "content": [{}]}]},
        "messages[0].content[0].type",
        "missing_required_parameter",
    ),
    (
        {"messages": [{"role": "user", "content": [CALL]}]},
        "messages[0].content[0].type",
        "invalid_value",
    ),
    (
        {"messages": [USER, CALLED, {"role": "user", "content": [{**RESULT, "content": [IMAGE]}]}]},
        "messages[2].content[0].content[0].type",
        "invalid_value",
    ),
    (
        {"messages": [{"role": "user", "content": [RESULT]}]},
        "messages[0].content[0].tool_use_id",
        "invalid_value",
    ),
    (
        {
            "messages": [
                USER,
                CALLED,
                {"role": "user", "content": [{"type": "text", "text": "x"}, RESULT]},
            ]
        },
        "messages[2].content[1].type",
        "invalid_value",
    ),
    ({"messages": [USER, CALLED]}, "messages[1]", "invalid_value"),
    ({"system": 5}, "system", "invalid_type"),
    ({"temperature": 1.1}, "temperature", "decimal_above_max_value"),
    ({"top_k": -1}, "top_k", "integer_below_min_value"),
    ({"stop_sequences": [""]}, "stop_sequences", "invalid_value"),
    ({"stop_sequences": ["a"] * 33}, "stop_sequences", "array_above_max_length"),
    (
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        "tools[0].type",
        "unsupported_parameter",
    ),
    ({"tools": [{"name": "look"}]}, "tools[0].input_schema", "missing_required_parameter"),
    ({"tools": [{**TOOL, "name": "a b"}]}, "tools[0].name", "invalid_value"),
    ({"tools": [TOOL, TOOL]}, "tools[1].name", "invalid_value"),
    ({"tool_choice": {"type": "any"}}, "tool_choice", "invalid_request"),
    (
        {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "jump"}},
        "tool_choice",
        "invalid_request",
    ),
    ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens", "invalid_value"),
    (
        {"thinking": {"type": "enabled", "budget_tokens": 1000}},
        "thinking.budget_tokens",
        "integer_below_min_value",
    ),
    (
        {"thinking": {"type": "enabled", "budget_tokens": 2000}},
        "thinking.budget_tokens",
        "invalid_value",
    ),
    ({"mcp_servers": [{}]}, "mcp_servers", "unsupported_parameter"),
    ({"speed": "fast"}, "speed", "unsupported_parameter"),
    (
        {
            "tools": [TOOL],
            "tool_choice": {"type": "any"},
            "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
        },
        "output_config.format",
        "invalid_value",
    ),
]


@pytest.mark.parametrize(("fields", "param", "code"), REFUSED, ids=lambda one: str(one)[:60])
def test_what_is_wrong_is_named(fields: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(TriremeError) as caught:
        asked(**fields)
    assert (caught.value.param, caught.value.code, caught.value.spec.status) == (param, code, 400)
