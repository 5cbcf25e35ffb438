"""Requests of the Responses API in terms of the native wire; what is refused, and how."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.responses import ResponseItem
from pydantic import TypeAdapter

from gateway.body import parse
from gateway.responses.translate import generate_request, listed, resolved
from protocol.create_response import CreateResponse
from protocol.errors import TriremeError
from protocol.generation import GenerateRequest, Structure
from protocol.response_items import ITEMS, Item

LISTED: TypeAdapter[Any] = TypeAdapter(ResponseItem)
USER = {"role": "user", "content": "hi"}
SCHEMA = {"type": "object", "properties": {}, "additionalProperties": False}
TOOL = {"type": "function", "name": "look", "parameters": SCHEMA, "strict": True}
CALL = {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"}
RESULT = {"type": "function_call_output", "call_id": "c1", "output": "seen"}
THOUGHT = {
    "type": "reasoning",
    "id": "rs_1",
    "summary": [],
    "content": [{"type": "reasoning_text", "text": "Hm."}],
}
FORMAT = {"type": "json_schema", "name": "answer", "schema": SCHEMA, "strict": True}


def asked(**fields: Any) -> CreateResponse:
    return parse(json.dumps({"model": "m", "input": "hi", **fields}).encode(), CreateResponse)


def wire(*, before: list[Item] | None = None, **fields: Any) -> GenerateRequest:
    request = asked(**fields)
    conversation = (before or []) + resolved(request.items, lambda _: None)
    return generate_request(
        request, conversation, request_id="r", deadline_s=5.0, cache_salt="salt"
    )


def turns(*items: Any, **fields: Any) -> Any:
    return wire(input=list(items), **fields).messages


def test_a_plain_request() -> None:
    request = wire(max_output_tokens=9, temperature=0.25, top_p=0.5, stream=True)
    assert request.messages == [USER]
    assert (request.conv_stops, request.parse, request.whole) == (True, True, False)
    assert (request.deadline_s, request.cache_salt) == (5.0, "salt")
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (9, 0.25, 0.5)
    assert sampling.logprobs is None
    assert wire().sampling.temperature == 0.7
    assert wire().whole


def test_parts_are_joined_and_an_answer_is_one_turn() -> None:
    said = {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed"}
    said["content"] = [{"type": "output_text", "text": "Let me", "annotations": []}]
    parts = [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    assert turns({"role": "user", "content": parts}, THOUGHT, said, CALL, RESULT) == [
        {"role": "user", "content": "a\nb"},
        {
            "role": "assistant",
            "content": "Let me",
            "reasoning_content": "Hm.",
            "tool_calls": [call],
        },
        {"role": "tool", "content": "seen", "tool_call_id": "c1"},
    ]


def test_instructions_stand_first_with_a_system_message_that_follows() -> None:
    system = {"role": "system", "content": "Be kind."}
    assert turns(system, USER, instructions="Be short.") == [
        {"role": "system", "content": "Be short.\n\nBe kind."},
        USER,
    ]
    assert turns(USER, system, instructions="Be short.")[2] == system


def test_a_conversation_goes_on() -> None:
    before = ITEMS.validate_python([USER, THOUGHT, CALL])
    found = wire(before=before, input=[RESULT]).messages or []
    assert [turn["role"] for turn in found] == ["user", "assistant", "tool"]


def test_a_result_without_a_call_is_refused() -> None:
    with pytest.raises(TriremeError, match="call_id c1") as caught:
        turns(USER, RESULT)
    assert (caught.value.code, caught.value.param) == ("invalid_request", "input")


def test_references_are_resolved_or_refused() -> None:
    [message] = ITEMS.validate_python([USER])
    items = asked(input=[{"type": "item_reference", "id": "msg_1"}, {"id": "msg_2"}]).items
    assert resolved(items, {"msg_1": message, "msg_2": message}.get) == [message, message]
    with pytest.raises(TriremeError, match="msg_2") as caught:
        resolved(items, {"msg_1": message}.get)
    assert (caught.value.spec.status, caught.value.param) == (404, "input[1].id")


def test_listed_items_read_back_as_the_same_turns() -> None:
    plain = ITEMS.validate_python(
        [USER, {"role": "assistant", "content": "Yes"}, THOUGHT, CALL, RESULT]
    )
    shown = [listed(item) for item in plain]
    assert [item["type"] for item in shown] == [
        "message",
        "message",
        "reasoning",
        "function_call",
        "function_call_output",
    ]
    assert all(item["id"] for item in shown)
    for item in shown:
        LISTED.validate_python(item, strict=True)
    again = wire(before=ITEMS.validate_python(shown)).messages
    assert again == wire(before=plain).messages


def test_tools_and_choices_come_as_those_of_chat() -> None:
    request = wire(tools=[TOOL])
    function = {"name": "look", "parameters": SCHEMA, "strict": True}
    assert request.tools == [{"type": "function", "function": function}]
    assert request.structure is None
    for choice in (
        "required",
        {"type": "function", "name": "look"},
        {"type": "allowed_tools", "mode": "required", "tools": [TOOL]},
    ):
        forced = wire(tools=[TOOL], tool_choice=choice).structure
        assert forced is not None
        assert forced.kind == "tools"
        assert forced.value["functions"] == [{"name": "look", "parameters": SCHEMA}]
    assert wire(tools=[TOOL], tool_choice="none").tools is None
    assert wire(tools=[], tool_choice="auto").tools is None


def test_a_format_is_a_structure() -> None:
    schema = wire(text={"format": FORMAT}).structure
    assert schema == Structure(kind="json_schema", value=SCHEMA, param="text.format")
    assert wire(text={"format": {"type": "text"}}).structure is None
    json_object = wire(text={"format": {"type": "json_object"}}, input="JSON!").structure
    assert json_object == Structure(kind="json_object", param="text.format")
    with pytest.raises(TriremeError, match="json") as caught:
        wire(text={"format": {"type": "json_object"}})
    assert caught.value.param == "input"


def test_log_probabilities_are_asked_for_by_include() -> None:
    include = ["message.output_text.logprobs"]
    assert wire(include=include).sampling.logprobs == 0
    assert wire(include=include, top_logprobs=3).sampling.logprobs == 3


def test_efforts_reach_the_worker() -> None:
    assert wire(reasoning={"effort": "low", "summary": "auto"}).reasoning_effort == "low"
    assert wire().reasoning_effort is None


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"foo": 1}, "foo", "unknown_parameter"),
    ({"input": []}, "input", "empty_array"),
    ({"input": 5}, "input", "invalid_type"),
    ({"input": [5]}, "input", "invalid_type"),
    ({"input": [{}]}, "input[0].type", "missing_required_parameter"),
    ({"input": [{"type": "computer_call"}]}, "input[0].type", "unsupported_parameter"),
    ({"input": [{"role": "wizard", "content": ""}]}, "input[0].role", "invalid_value"),
    ({"input": [{"role": "user"}]}, "input[0].content", "missing_required_parameter"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        "input[0].content[0].type",
        "invalid_value",
    ),
    (
        {"input": [{"role": "user", "content": [{"type": "input_text"}]}]},
        "input[0].content[0].text",
        "missing_required_parameter",
    ),
    (
        {"input": [{**THOUGHT, "encrypted_content": "x"}]},
        "input[0].encrypted_content",
        "unsupported_parameter",
    ),
    ({"max_output_tokens": 0}, "max_output_tokens", "integer_below_min_value"),
    ({"temperature": 2.1}, "temperature", "decimal_above_max_value"),
    ({"top_logprobs": 2}, "top_logprobs", "invalid_request"),
    ({"include": ["web_search_call.results"]}, "include[0]", "unsupported_parameter"),
    ({"stream_options": {}}, "stream_options", "invalid_request"),
    ({"truncation": "auto"}, "truncation", "unsupported_parameter"),
    ({"background": True}, "background", "unsupported_parameter"),
    ({"service_tier": "flex"}, "service_tier", "unsupported_parameter"),
    ({"text": {"verbosity": "low"}}, "text.verbosity", "unsupported_parameter"),
    ({"text": {"format": {"type": "xml"}}}, "text.format", "invalid_value"),
    ({"text": {"format": {**FORMAT, "name": "a b"}}}, "text.format.name", "invalid_value"),
    ({"reasoning": {"effort": "huge"}}, "reasoning.effort", "invalid_value"),
    ({"reasoning": {"summary": "detailed"}}, "reasoning.summary", "unsupported_parameter"),
    ({"metadata": {"a": 1}}, "metadata.a", "invalid_type"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type", "unsupported_parameter"),
    ({"tools": [{"name": "look"}]}, "tools[0].type", "missing_required_parameter"),
    ({"tools": [{**TOOL, "name": "a b"}]}, "tools[0].name", "invalid_value"),
    ({"tools": [TOOL, TOOL]}, "tools[1].name", "invalid_value"),
    ({"tools": [{**TOOL, "name": f"f{i}"} for i in range(129)]}, "tools", "array_above_max_length"),
    ({"tool_choice": "required"}, "tool_choice", "invalid_request"),
    ({"tools": [TOOL], "tool_choice": {"type": "mcp"}}, "tool_choice", "invalid_value"),
    (
        {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "mode": "no", "tools": [TOOL]}},
        "tool_choice.mode",
        "invalid_value",
    ),
    (
        {"tools": [TOOL], "tool_choice": "required", "text": {"format": FORMAT}},
        "text.format",
        "invalid_value",
    ),
]


@pytest.mark.parametrize(("fields", "param", "code"), REFUSED, ids=lambda one: str(one)[:60])
def test_what_is_wrong_is_named(fields: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(TriremeError) as caught:
        asked(**fields)
    assert (caught.value.param, caught.value.code, caught.value.spec.status) == (param, code, 400)


@pytest.mark.parametrize(
    "field", ["prompt", "conversation", "context_management", "moderation", "prompt_cache_options"]
)
def test_what_is_not_served_is_refused_unless_it_is_null(field: str) -> None:
    assert asked(**{field: None})
    with pytest.raises(TriremeError) as caught:
        asked(**{field: {}})
    assert (caught.value.param, caught.value.code) == (field, "unsupported_parameter")


def test_every_field_of_openais_request_is_known() -> None:
    """As the fields were when this was written; the list is the specification's."""
    listed_there = """background context_management conversation include input instructions
        max_output_tokens max_tool_calls metadata model moderation parallel_tool_calls
        previous_response_id prompt prompt_cache_key prompt_cache_options prompt_cache_retention
        reasoning safety_identifier service_tier store stream stream_options temperature text
        tool_choice tools top_logprobs top_p truncation user"""
    assert set(CreateResponse.model_fields) == set(listed_there.split())
