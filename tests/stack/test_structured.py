"""Structured output and forced tool calls, by the official client, on random weights: what they
write without a grammar is noise."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import openai
import pytest
from pydantic import BaseModel, Field

from tests.stack.noise import save_noise
from tests.stack.processes import Stack, running

ADDRESS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 6},
        "kind": {"enum": ["home", "work"]},
        "rooms": {"type": "integer", "minimum": 1, "maximum": 40},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 3}, "maxItems": 2},
        "owner": {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
    },
    "required": ["city", "kind", "rooms", "tags", "owner"],
    "additionalProperties": False,
}
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {"place": {"type": "string", "maxLength": 5}, "days": {"enum": [1, 2, 3]}},
    "required": ["place", "days"],
    "additionalProperties": False,
}
TOOLS: Any = [
    {"type": "function", "function": {"name": "get_weather", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "move-to", "parameters": ADDRESS, "strict": True}},
    {"type": "function", "function": {"name": "stop", "description": "Ends all."}},
]
SCHEMAS = {"get_weather": WEATHER, "move-to": ADDRESS, "stop": {"enum": [{}]}}
HELLO: Any = [{"role": "user", "content": "Answer in JSON."}]
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "address", "schema": ADDRESS}}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("models") / "noise"
    save_noise(folder)
    with running(tmp_path_factory.mktemp("stack")) as made:
        made.add_worker("--model-path", str(folder), "--model-names", "noise")
        made.wait_serving()
        yield made


@pytest.fixture
def client(stack: Stack) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{stack.gateway.url}/v1", api_key="none", max_retries=0)


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    asked: dict[str, Any] = {"model": "noise", "messages": HELLO, "temperature": 1.0, **fields}
    return client.chat.completions.create(**asked)


def test_a_schema_holds_200_times_of_200(client: openai.OpenAI) -> None:
    def one(seed: int) -> Any:
        return ask(client, response_format=FORMAT, n=10, seed=seed)

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(one, range(20)))
    choices = [choice for answer in answers for choice in answer.choices]
    assert len(choices) == 200
    for choice in choices:
        assert choice.finish_reason == "stop"
        jsonschema.validate(json.loads(choice.message.content), ADDRESS)
    assert len({choice.message.content for choice in choices}) > 150


def test_forced_calls_hold_200_times_of_200(client: openai.OpenAI) -> None:
    def one(seed: int) -> Any:
        return ask(client, tools=TOOLS, tool_choice="required", n=10, seed=seed)

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(one, range(20)))
    called: list[str] = []
    for choice in [choice for answer in answers for choice in answer.choices]:
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        assert choice.message.tool_calls
        for call in choice.message.tool_calls:
            called.append(call.function.name)
            jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[called[-1]])
    assert set(called) == set(SCHEMAS)


def test_a_named_function_is_called_and_nothing_else(client: openai.OpenAI) -> None:
    choice = {"type": "function", "function": {"name": "get_weather"}}
    answer = ask(client, tools=TOOLS, tool_choice=choice, seed=1)
    [call] = answer.choices[0].message.tool_calls
    assert (call.type, call.function.name) == ("function", "get_weather")
    assert answer.choices[0].finish_reason == "stop"
    allowed = {"mode": "required", "tools": [choice]}
    several = ask(
        client,
        tools=TOOLS,
        tool_choice={"type": "allowed_tools", "allowed_tools": allowed},
        parallel_tool_calls=False,
        seed=2,
        n=5,
    )
    for one in several.choices:
        assert [call.function.name for call in one.message.tool_calls] == ["get_weather"]


def test_streamed_calls_are_those_of_the_whole_answer(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"tools": TOOLS, "tool_choice": "required", "seed": 5}
    whole = ask(client, **asked).choices[0]
    calls: list[dict[str, str]] = []
    last = None
    for chunk in ask(client, stream=True, **asked):
        [choice] = chunk.choices
        last = choice.finish_reason
        for delta in choice.delta.tool_calls or []:
            if delta.function.name is not None:
                assert delta.index == len(calls)
                assert delta.id
                assert delta.function.arguments == ""
                calls.append({"name": delta.function.name, "arguments": ""})
            else:
                calls[delta.index]["arguments"] += delta.function.arguments
    assert last == whole.finish_reason == "tool_calls"
    assert calls == [
        {"name": call.function.name, "arguments": call.function.arguments}
        for call in whole.message.tool_calls
    ]


@pytest.mark.parametrize(
    ("parameters", "valid"),
    [
        ({}, {"enum": [{}]}),
        ({"properties": {"a": {"enum": [1]}}, "required": ["a"], "additionalProperties": False},
         {"enum": [{"a": 1}]}),
    ],
)  # fmt: skip
def test_arguments_are_an_object_whatever_the_schema_leaves_out(
    client: openai.OpenAI, parameters: Any, valid: Any
) -> None:
    tool: Any = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    answer = ask(client, tools=[tool], tool_choice="required", n=5, seed=1)
    for choice in answer.choices:
        for call in choice.message.tool_calls:
            jsonschema.validate(json.loads(call.function.arguments), valid)


def test_the_function_at_fault_is_named(client: openai.OpenAI) -> None:
    bad: Any = {"type": "object", "properties": {"a": {"type": "objekt"}}}
    tools = [*TOOLS, {"type": "function", "function": {"name": "odd", "parameters": bad}}]
    with pytest.raises(openai.BadRequestError, match="parameters of the function 'odd'") as caught:
        ask(client, tools=tools, tool_choice="required")
    assert (caught.value.param, caught.value.code) == ("tools", "invalid_json_schema")


class Point(BaseModel):
    x: int = Field(ge=0, le=9)
    y: int = Field(ge=0, le=9)


def test_the_clients_own_helpers(client: openai.OpenAI) -> None:
    parsed = client.chat.completions.parse(
        model="noise", messages=HELLO, response_format=Point, temperature=1.0, seed=3
    )
    assert isinstance(parsed.choices[0].message.parsed, Point)
    with client.chat.completions.stream(
        model="noise", messages=HELLO, response_format=Point, temperature=1.0, seed=3
    ) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.parsed == parsed.choices[0].message.parsed


@pytest.mark.parametrize(
    ("asked", "fits"),
    [
        ({"regex": "[0-9]{3}-[a-f]+x"}, r"[0-9]{3}-[a-f]+x"),
        ({"choice": ["yes", 'no, "never"', "it\ndepends"]}, r'yes|no, "never"|it\ndepends'),
        ({"grammar": 'start: "<" /[a-z]{2,4}/ ">"'}, "<[a-z]{2,4}>"),
    ],
)
def test_extensions(client: openai.OpenAI, asked: dict[str, Any], fits: str) -> None:
    import re

    for seed in range(5):
        extra = {"structured_outputs": asked}
        answer = ask(client, extra_body=extra, seed=seed, max_tokens=400)
        text = answer.choices[0].message.content
        if answer.choices[0].finish_reason == "stop":
            assert re.fullmatch(fits, text), text
        legacy = client.completions.create(
            model="noise", prompt="x", extra_body=extra, seed=seed, max_tokens=400
        )
        if legacy.choices[0].finish_reason == "stop":
            assert re.fullmatch(fits, legacy.choices[0].text)


def test_a_json_object(client: openai.OpenAI) -> None:
    answer = ask(client, response_format={"type": "json_object"}, seed=1, max_tokens=300)
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content), dict)
    assert answer.choices[0].message.content.startswith("{")


def test_log_probabilities_cover_each_token(client: openai.OpenAI) -> None:
    """Forced tokens take no step, except where their probabilities are asked for."""
    plain = ask(client, response_format=FORMAT, seed=9)
    scored = ask(client, response_format=FORMAT, seed=9, logprobs=True, top_logprobs=1)
    for answer in (plain, scored):
        jsonschema.validate(json.loads(answer.choices[0].message.content), ADDRESS)
    content = scored.choices[0].logprobs.content
    assert len(content) == scored.usage.completion_tokens
    assert "".join(one.token for one in content) == scored.choices[0].message.content


def test_stop_strings_and_limits(client: openai.OpenAI) -> None:
    stopped = ask(client, response_format=FORMAT, seed=4, stop=['"', "}"])
    jsonschema.validate(json.loads(stopped.choices[0].message.content), ADDRESS)
    cut = ask(client, response_format=FORMAT, seed=4, max_tokens=3)
    assert cut.choices[0].finish_reason == "length"
    assert cut.usage.completion_tokens == 3


def outputs(**fields: Any) -> dict[str, Any]:
    return {"extra_body": {"structured_outputs": fields}}


LONG: Any = {"extra_body": {"min_tokens": 5}}


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format", "invalid_json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {
                "name": "x", "schema": {"type": "strnig"}}}},
            "response_format",
            "invalid_json_schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {
                "name": "x", "schema": {"type": "string", "pattern": "(["}}}},
            "response_format",
            "invalid_json_schema",
        ),
        (outputs(regex="(["), "structured_outputs", "invalid_grammar"),
        (outputs(grammar="start: nowhere"), "structured_outputs", "invalid_grammar"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "f"}}},
            "tool_choice",
            None,
        ),
        ({"response_format": FORMAT, **LONG}, "min_tokens", "invalid_value"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_by_name(
    client: openai.OpenAI, fields: dict[str, Any], param: str, code: str | None
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **fields)
    assert caught.value.param == param
    assert caught.value.code == code


def test_a_schema_nested_ten_thousand_deep(client: openai.OpenAI, stack: Stack) -> None:
    import httpx

    deep = '{"a":' * 10_000 + "1" + "}" * 10_000
    body = (
        '{"model":"noise","messages":[{"role":"user","content":"x"}],"response_format":'
        '{"type":"json_schema","json_schema":{"name":"x","schema":' + deep + "}}}"
    )
    answer = httpx.post(
        f"{stack.gateway.url}/v1/chat/completions",
        content=body,
        headers={"content-type": "application/json"},
    )
    assert answer.status_code == 400
