"""Calls that the model decides about, and reasoning, by the official client: a tiny model that was
taught a few conversations by heart writes them in its own format."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.stack.processes import Stack, running
from tests.stack.taught import HELLO, HISTORY, QUESTION, TOOLS, teach


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("models") / "taught"
    teach(folder)
    with running(tmp_path_factory.mktemp("stack")) as made:
        made.add_worker("--model-path", str(folder), "--model-names", "taught")
        made.wait_serving()
        yield made


@pytest.fixture
def client(stack: Stack) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{stack.gateway.url}/v1", api_key="none", max_retries=0)


def ask(client: openai.OpenAI, messages: Any, **fields: Any) -> Any:
    return client.chat.completions.create(
        model="taught", messages=messages, temperature=0, **fields
    )


def called(message: Any) -> list[tuple[str, Any]]:
    return [(c.function.name, json.loads(c.function.arguments)) for c in message.tool_calls or []]


BOTH = [("weather", {"city": "Oslo"}), ("weather", {"city": "Rome"})]


@pytest.mark.parametrize("fields", [{}, {"tool_choice": "auto"}, {"n": 2}, {"logprobs": True}])
def test_the_models_own_calls(client: openai.OpenAI, fields: Any) -> None:
    answer = ask(client, [QUESTION], tools=TOOLS, **fields)
    assert len(answer.choices) == fields.get("n", 1)
    for choice in answer.choices:
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content == "I look."
        assert choice.message.reasoning_content == "Two cities."
        assert called(choice.message) == BOTH
        ids = [call.id for call in choice.message.tool_calls]
        assert len(set(ids)) == 2
        if fields.get("logprobs"):
            assert len(choice.logprobs.content) == answer.usage.completion_tokens
    details = answer.usage.completion_tokens_details
    assert 0 < details.reasoning_tokens < answer.usage.completion_tokens


def test_a_stream_has_the_same_parts(client: openai.OpenAI) -> None:
    reasoning, content, calls, ends = "", "", [], []
    for chunk in ask(client, [QUESTION], tools=TOOLS, stream=True):
        [choice] = chunk.choices
        delta = choice.delta
        reasoning += getattr(delta, "reasoning_content", None) or ""
        content += delta.content or ""
        for piece in delta.tool_calls or []:
            if piece.function.name is not None:
                assert (piece.index, piece.type) == (len(calls), "function")
                calls.append([piece.function.name, ""])
            calls[piece.index][1] += piece.function.arguments or ""
        ends += [choice.finish_reason] if choice.finish_reason else []
    assert (reasoning, content) == ("Two cities.", "I look.")
    assert [(name, json.loads(arguments)) for name, arguments in calls] == BOTH
    assert ends == ["tool_calls"]


def test_the_clients_own_stream_helper(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="taught", messages=[QUESTION], tools=TOOLS, temperature=0
    ) as stream:
        message = stream.get_final_completion().choices[0].message
    assert called(message) == BOTH


def test_one_call_where_one_is_wanted(client: openai.OpenAI) -> None:
    answer = ask(client, [QUESTION], tools=TOOLS, parallel_tool_calls=False)
    assert called(answer.choices[0].message) == BOTH[:1]
    assert answer.choices[0].finish_reason == "tool_calls"
    whole = ask(client, [QUESTION], tools=TOOLS).usage.completion_tokens
    assert answer.usage.completion_tokens < whole


def test_results_go_back(client: openai.OpenAI) -> None:
    answer = ask(client, HISTORY, tools=TOOLS)
    assert answer.choices[0].message.content == "Rain and sun."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.tool_calls is None


def test_a_call_of_a_function_that_is_not_allowed_stays_text(client: openai.OpenAI) -> None:
    # the template shows the names, so the answer is only like the taught one: the names decide
    allowed = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "mail"}}]}
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    message = ask(client, [QUESTION], tools=TOOLS, tool_choice=choice).choices[0].message
    assert all(name == "mail" for name, _ in called(message))


def test_reasoning_without_tools_and_switched_off(client: openai.OpenAI) -> None:
    message = ask(client, HELLO).choices[0].message
    assert (message.content, message.reasoning_content) == ("Hi there.", "A greeting.")
    for fields in (
        {"reasoning_effort": "none"},
        {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}},
    ):
        answer = ask(client, HELLO, **fields)
        message = answer.choices[0].message
        assert message.content == "Hi at once."
        assert not hasattr(message, "reasoning_content")
        assert answer.usage.completion_tokens_details.reasoning_tokens == 0
    assert ask(client, HELLO, reasoning_effort="high").choices[0].message.content == "Hi there."


def test_reasoning_that_the_limit_cuts(client: openai.OpenAI) -> None:
    answer = ask(client, HELLO, max_tokens=2)
    message = answer.choices[0].message
    assert message.content == ""
    assert "A greeting.".startswith(message.reasoning_content)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens_details.reasoning_tokens == 2


def test_forced_calls_and_schemas_on_a_model_that_reasons(client: openai.OpenAI) -> None:
    forced = ask(client, [QUESTION], tools=TOOLS, tool_choice="required", max_tokens=200)
    assert called(forced.choices[0].message)
    shape = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
    asked: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {
        **shape, "additionalProperties": False}}}  # fmt: skip
    answer = ask(client, HELLO, response_format=asked)
    assert json.loads(answer.choices[0].message.content) in ({"a": 1}, {"a": 2})


def test_the_raw_text_is_there_where_no_parser_is_wanted(stack: Stack) -> None:
    client = openai.OpenAI(base_url=f"{stack.gateway.url}/v1", api_key="none", max_retries=0)
    text = client.completions.create(
        model="taught",
        prompt="<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n<think>\n",
        temperature=0,
        max_tokens=40,
        extra_body={"skip_special_tokens": False},
    )
    assert text.choices[0].text.startswith("A greeting.\n</think>\n\nHi there.")
