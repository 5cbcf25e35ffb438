"""The Responses API, the Messages API and LangChain, by their own clients, over real processes.

The model is of random weights; its template opens reasoning when it is told to think.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import anthropic
import jsonschema
import openai
import pytest
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, ConfigDict

from tests.stack.noise import save_noise
from tests.stack.processes import Stack, running

TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}"
    "{%- if enable_thinking is defined and enable_thinking -%}{{- '<think>\\n' -}}{%- endif -%}"
    "{%- endif -%}"
)
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {"place": {"type": "string", "maxLength": 5}, "days": {"enum": [1, 2, 3]}},
    "required": ["place", "days"],
    "additionalProperties": False,
}
NAME = "get_weather"


class Point(BaseModel):
    """A place; noise of other fields is not allowed, as it would have no end."""

    model_config = ConfigDict(extra="forbid")

    near: bool
    kind: Literal["home", "work"]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("models") / "noise"
    save_noise(folder, TEMPLATE)
    with running(tmp_path_factory.mktemp("stack")) as made:
        made.add_worker("--model-path", str(folder), "--model-names", "noise")
        made.wait_serving()
        yield made


# ---- the Responses API --------------------------------------------------------------------------


@pytest.fixture
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    url = f"{stack.gateway.url}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as made:
        yield made


TOOLS: Any = [{"type": "function", "name": NAME, "parameters": WEATHER, "strict": True}]


def respond(client: openai.OpenAI, given: Any = "Hi.", **fields: Any) -> Any:
    asked = {"model": "noise", "max_output_tokens": 12, "temperature": 0.0, **fields}
    return client.responses.create(input=given, **asked)


def test_a_streamed_response_is_the_whole_one(client: openai.OpenAI) -> None:
    whole = respond(client)
    assert (whole.status, whole.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert whole.output_text
    assert whole.usage.output_tokens == 12
    events = list(respond(client, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.output_text == whole.output_text
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text


def test_the_clients_own_helpers_of_responses(client: openai.OpenAI) -> None:
    asked: Any = {"model": "noise", "input": "Where?", "temperature": 0.0, "text_format": Point}
    parsed = client.responses.parse(**asked)
    assert isinstance(parsed.output_parsed, Point)
    with client.responses.stream(**asked) as stream:
        final = stream.get_final_response()
    assert final.output_parsed == parsed.output_parsed


def test_a_response_goes_on_from_a_forced_call(client: openai.OpenAI) -> None:
    first = respond(
        client, tools=TOOLS, tool_choice={"type": "function", "name": NAME}, max_output_tokens=200
    )
    [call] = first.output
    assert (call.type, call.name, first.status) == ("function_call", NAME, "completed")
    jsonschema.validate(json.loads(call.arguments), WEATHER)
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    second = respond(client, [result], previous_response_id=first.id, tools=TOOLS)
    assert second.previous_response_id == first.id
    assert second.usage.input_tokens > first.usage.input_tokens
    # the same, with the conversation sent again
    again = [{"role": "user", "content": "Hi."}, call.to_dict(), result]
    assert respond(client, again, tools=TOOLS).output_text == second.output_text
    assert client.responses.retrieve(second.id).output_text == second.output_text
    [kept] = client.responses.input_items.list(second.id).data
    assert (kept.type, kept.output) == ("function_call_output", "rain")
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.BadRequestError) as caught:
        respond(client, previous_response_id=first.id)
    assert (caught.value.code, caught.value.param) == (
        "previous_response_not_found",
        "previous_response_id",
    )


def test_streamed_calls_are_typed_items(client: openai.OpenAI) -> None:
    asked: Any = {"tools": TOOLS, "tool_choice": "required", "max_output_tokens": 300}
    events = list(respond(client, stream=True, parallel_tool_calls=False, **asked))
    done = [e for e in events if e.type == "response.function_call_arguments.done"]
    pieces = [e.delta for e in events if e.type == "response.function_call_arguments.delta"]
    assert [event.name for event in done] == [NAME]
    assert "".join(pieces) == done[0].arguments
    jsonschema.validate(json.loads(done[0].arguments), WEATHER)


def test_reasoning_is_an_item_of_its_own(client: openai.OpenAI) -> None:
    thought = respond(client, reasoning={"effort": "high"})
    assert [item.type for item in thought.output] == ["reasoning"]
    assert thought.output[0].content[0].text
    assert thought.usage.output_tokens_details.reasoning_tokens > 0
    kinds = {event.type for event in respond(client, reasoning={"effort": "low"}, stream=True)}
    assert {"response.reasoning_text.delta", "response.reasoning_text.done"} <= kinds
    plain = respond(client, reasoning={"effort": "none"})
    assert [item.type for item in plain.output] == ["message"]


def test_log_probabilities_of_a_response(client: openai.OpenAI) -> None:
    answer = respond(client, include=["message.output_text.logprobs"], top_logprobs=2)
    shown = answer.output[0].content[0].logprobs
    assert len(shown) == 12
    assert [len(one.top_logprobs) for one in shown] == [2] * 12
    assert "".join(one.token for one in shown) == answer.output_text


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"max_output_tokens": 4000}, "max_output_tokens", "invalid_value"),
        ({"given": "x " * 4000}, "input", "context_length_exceeded"),
        (
            {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "no"}}}},
            "text.format",
            "invalid_json_schema",
        ),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "unsupported_parameter"),
        ({"given": [{"type": "item_reference", "id": "msg_0"}]}, "input[0].id", None),
    ],
)
def test_what_a_response_cannot_be_is_named(
    client: openai.OpenAI, fields: dict[str, Any], param: str, code: str | None
) -> None:
    with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as caught:
        respond(client, fields.pop("given", "Hi."), **fields)
    assert (caught.value.param, caught.value.code) == (param, code)


# ---- the Messages API ---------------------------------------------------------------------------


@pytest.fixture
def claude(stack: Stack) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=stack.gateway.url, api_key="none", max_retries=0) as made:
        yield made


HELLO: Any = [{"role": "user", "content": "Hi."}]
CLAUDE_TOOLS: Any = [{"name": NAME, "description": "The weather.", "input_schema": WEATHER}]


def message(claude: anthropic.Anthropic, **fields: Any) -> Any:
    body = {"temperature": 0.0, **fields.pop("extra_body", {})}
    asked = {"model": "noise", "max_tokens": 12, "messages": HELLO, **fields}
    return claude.messages.create(**asked, extra_body=body)


def test_a_streamed_message_is_the_whole_one(claude: anthropic.Anthropic) -> None:
    whole = message(claude)
    assert (whole.stop_reason, whole.usage.output_tokens) == ("max_tokens", 12)
    [block] = whole.content
    assert block.text
    with claude.messages.stream(
        model="noise", max_tokens=12, messages=HELLO, extra_body={"temperature": 0.0}
    ) as stream:
        assert "".join(stream.text_stream) == block.text
        final = stream.get_final_message()
    assert [one.text for one in final.content] == [block.text]
    assert final.stop_reason == whole.stop_reason
    total = final.usage.input_tokens + (final.usage.cache_read_input_tokens or 0)
    assert total == whole.usage.input_tokens + (whole.usage.cache_read_input_tokens or 0)


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": NAME}])
def test_a_forced_tool_use_and_its_result(
    claude: anthropic.Anthropic, choice: dict[str, Any]
) -> None:
    choice = {**choice, "disable_parallel_tool_use": True}
    first = message(claude, tools=CLAUDE_TOOLS, tool_choice=choice, max_tokens=300)
    [call] = first.content
    assert (call.type, call.name, first.stop_reason) == ("tool_use", NAME, "tool_use")
    jsonschema.validate(call.input, WEATHER)
    with claude.messages.stream(
        model="noise",
        max_tokens=300,
        messages=HELLO,
        tools=CLAUDE_TOOLS,
        tool_choice=choice,
        extra_body={"temperature": 0.0},
    ) as stream:
        [streamed] = stream.get_final_message().content
    assert (streamed.name, streamed.input) == (call.name, call.input)
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "rain"}
    talk = [
        *HELLO,
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": [result]},
    ]
    assert message(claude, messages=talk, tools=CLAUDE_TOOLS).content[0].type == "text"


def test_tokens_are_counted_as_they_are_used(claude: anthropic.Anthropic) -> None:
    bodies: list[Any] = [
        {"messages": HELLO},
        {"messages": HELLO, "system": "Be short.", "tools": CLAUDE_TOOLS},
        {"messages": [*HELLO, {"role": "assistant", "content": "Well"}]},
        {"messages": HELLO, "thinking": {"type": "enabled", "budget_tokens": 1024}},
    ]
    counts = []
    for body in bodies:
        counts.append(claude.messages.count_tokens(model="noise", **body).input_tokens)
        used = message(claude, **{"max_tokens": 1025, **body}).usage
        assert used.input_tokens + used.cache_read_input_tokens == counts[-1]
    assert len(set(counts)) == len(counts)


def test_thinking_is_switched(claude: anthropic.Anthropic) -> None:
    thinking = {"type": "enabled", "budget_tokens": 1024}
    thought = message(claude, thinking=thinking, max_tokens=1025)
    assert thought.content[0].type == "thinking"
    assert thought.usage.output_tokens_details.thinking_tokens > 0
    assert message(claude, thinking={"type": "disabled"}).content[0].type == "text"


def test_a_stop_sequence_is_told(claude: anthropic.Anthropic) -> None:
    text = message(claude, max_tokens=40).content[0].text
    stop = text[5:7]
    stopped = message(claude, stop_sequences=[stop], max_tokens=40)
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", stop)
    assert "".join(block.text for block in stopped.content) == text[: text.index(stop)]


def test_the_clients_own_parsing_of_messages(claude: anthropic.Anthropic) -> None:
    parsed = claude.messages.parse(
        model="noise", max_tokens=300, messages=HELLO, output_format=Point
    )
    assert isinstance(parsed.parsed_output, Point)


def test_the_errors_of_messages_are_typed(claude: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        message(claude, model="nobody")
    assert missing.value.type == "not_found_error"
    assert missing.value.request_id
    with pytest.raises(anthropic.BadRequestError, match="maximum context length") as long:
        message(claude, messages=[{"role": "user", "content": "x " * 4000}])
    assert long.value.type == "invalid_request_error"
    with pytest.raises(anthropic.BadRequestError, match=r"tools\[0\]\.type"):
        message(claude, tools=[{"type": "bash_20250124", "name": "bash"}])


# ---- LangChain ----------------------------------------------------------------------------------


def chain(stack: Stack, **fields: Any) -> ChatOpenAI:
    options: dict[str, Any] = {"temperature": 0.0, "max_retries": 0, "max_tokens": 12, **fields}
    url = f"{stack.gateway.url}/v1"
    return ChatOpenAI(base_url=url, api_key="none", model="noise", **options)


def get_weather(place: str, days: Literal[1, 2, 3]) -> str:
    """The weather at a place."""
    return f"rain at {place} for {days} days"


@pytest.mark.parametrize("use_responses_api", [False, True])
def test_langchain_invokes_and_streams(stack: Stack, use_responses_api: bool) -> None:
    model = chain(stack, use_responses_api=use_responses_api)
    whole = model.invoke("Hi.")
    assert whole.text
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] == 12
    total = whole.usage_metadata["input_tokens"] + 12
    assert whole.usage_metadata["total_tokens"] == total
    chunks = list(model.stream("Hi."))
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert len(chunks) > 2


@pytest.mark.parametrize("use_responses_api", [False, True])
@pytest.mark.parametrize("choice", ["any", NAME])
def test_langchain_binds_tools(stack: Stack, choice: str, use_responses_api: bool) -> None:
    model = chain(stack, max_tokens=300, use_responses_api=use_responses_api)
    bound = model.bind_tools([get_weather], tool_choice=choice, parallel_tool_calls=False)
    [call] = bound.invoke("Hi.").tool_calls
    assert call["name"] == NAME
    assert get_weather(**call["args"]).startswith("rain")


@pytest.mark.parametrize("use_responses_api", [False, True])
@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_langchain_gives_objects(
    stack: Stack, method: Literal["json_schema", "function_calling"], use_responses_api: bool
) -> None:
    model = chain(stack, max_tokens=300, use_responses_api=use_responses_api)
    assert isinstance(model.with_structured_output(Point, method=method).invoke("Where?"), Point)
