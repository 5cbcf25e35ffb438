"""OpenAI requests as requests of the native wire."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.deadline import deadline_s
from gateway.translate import (
    chat_request,
    check_limits,
    completion_requests,
    echoed_text,
    embed_request,
)
from protocol.errors import TriremeError
from protocol.fleet import ModelRecord
from protocol.generation import GenerateRequest
from protocol.openai import (
    APIChatCompletionRequest,
    ChatCompletionRequest,
    CompletionRequest,
    EmbeddingsRequest,
)

BESIDE: dict[str, Any] = {"request_id": "r", "deadline_s": 9.0, "cache_salt": "s"}


def chat(*messages: dict[str, Any], **fields: Any) -> GenerateRequest:
    turns = messages or ({"role": "user", "content": "hi"},)
    asked = ChatCompletionRequest.model_validate({"model": "m", "messages": list(turns)} | fields)
    return chat_request(asked, **BESIDE)


def completions(**fields: Any) -> list[GenerateRequest]:
    asked = CompletionRequest.model_validate({"model": "m", "prompt": "hi"} | fields)
    return completion_requests(asked, **BESIDE)


def test_chat_goes_as_messages_with_the_templates_stops() -> None:
    request = chat()
    assert request.messages == [{"role": "user", "content": "hi"}]
    assert request.conv_stops
    assert request.add_generation_prompt
    assert (request.deadline_s, request.cache_salt, request.sampling.seed) == (9.0, "s", None)
    assert request.sampling.max_tokens is None
    assert request.sampling.temperature == 0.7


def test_every_sampling_field_arrives() -> None:
    fields: dict[str, Any] = {
        "n": 2,
        "temperature": 0.1,
        "top_p": 0.2,
        "top_k": 3,
        "min_p": 0.4,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.6,
        "repetition_penalty": 1.7,
        "length_penalty": 1.8,
        "logit_bias": {"9": 1.0},
        "seed": -10,
        "stop": ["x"],
        "stop_token_ids": [11],
        "include_stop_str_in_output": True,
        "ignore_eos": True,
        "min_tokens": 12,
        "max_tokens": 13,
        "skip_special_tokens": False,
        "prompt_logprobs": 14,
    }
    for request in (chat(**fields), *completions(**fields)):
        found = request.sampling.model_dump()
        assert {name: found[name] for name in fields} == fields


def test_chat_logprobs_are_a_switch_and_a_number() -> None:
    assert chat().sampling.logprobs is None
    assert chat(logprobs=True).sampling.logprobs == 0
    assert chat(logprobs=True, top_logprobs=3).sampling.logprobs == 3


def test_going_on_with_the_last_message_asks_for_no_new_turn() -> None:
    turns = ({"role": "user", "content": "hi"}, {"role": "assistant", "content": "He"})
    request = chat(*turns, continue_final_message=True)
    assert (request.continue_final_message, request.add_generation_prompt) == (True, False)


def test_tool_turns_are_passed_on_and_empty_content_is_text() -> None:
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{"}}]
    turns = (
        {"role": "assistant", "content": None, "tool_calls": calls, "refusal": None},
        {"role": "tool", "content": [{"type": "text", "text": "7"}], "tool_call_id": "c"},
    )
    assert chat(*turns).messages == [
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "content": "7", "tool_call_id": "c"},
    ]


def test_a_text_in_place_of_messages_is_a_rendered_prompt() -> None:
    asked = APIChatCompletionRequest.model_validate({"model": "m", "messages": "USER: hi"})
    request = chat_request(asked, **BESIDE)
    assert (request.prompt, request.messages, request.conv_stops) == ("USER: hi", None, True)
    assert echoed_text(asked.model_copy(update={"echo": True})) == ""


def test_each_prompt_is_a_request() -> None:
    requests = completions(prompt=["a", [1, 2]], add_special_tokens=False)
    assert [(r.prompt, r.prompt_ids) for r in requests] == [("a", None), (None, [1, 2])]
    assert len({r.request_id for r in requests}) == 2
    assert not any(r.conv_stops or r.add_special_tokens for r in requests)


def test_beam_search_samples_nothing_and_an_empty_suffix_is_none() -> None:
    [request] = completions(use_beam_search=True, n=2, best_of=3, suffix="")
    sampling = request.sampling
    assert (sampling.use_beam_search, sampling.temperature) == (True, 0.0)
    assert (sampling.n, sampling.best_of, request.suffix) == (2, 3, None)
    assert completions(suffix="b")[0].suffix == "b"


def test_echoed_logprobs_need_the_prompts() -> None:
    assert completions(echo=True, logprobs=2)[0].sampling.prompt_logprobs == 2
    assert completions(echo=True)[0].sampling.prompt_logprobs is None
    assert completions(logprobs=2)[0].sampling.prompt_logprobs is None


def test_chat_echo_is_the_assistants_last_text() -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "He"}]
    fields = {"model": "m", "messages": turns}
    assert echoed_text(ChatCompletionRequest.model_validate(fields | {"echo": True})) == "He"
    assert echoed_text(ChatCompletionRequest.model_validate(fields)) == ""


def test_embeddings_keep_inputs_and_dimensions() -> None:
    asked = EmbeddingsRequest.model_validate({"model": "m", "input": [[1], "a"], "dimensions": 8})
    request = embed_request(asked, request_id="r")
    assert (request.inputs, request.dimensions) == ([[1], "a"], 8)


def test_more_tokens_than_the_context_are_refused_with_the_limit() -> None:
    record = ModelRecord(name="m", context_length=100)
    asked = ChatCompletionRequest.model_validate(
        {"model": "m", "messages": [{"role": "user", "content": "a"}], "max_tokens": 101}
    )
    with pytest.raises(TriremeError, match="max_tokens is too large: 101") as caught:
        check_limits(asked, record)
    assert (caught.value.code, caught.value.param) == ("invalid_value", "max_tokens")
    check_limits(asked.model_copy(update={"max_tokens": 100}), record)
    check_limits(asked, None)


@pytest.mark.parametrize("header", ["0", "-5", "1.5", "", "soon", "9" * 20, "²"])
def test_a_malformed_time_limit_is_refused(header: str) -> None:
    with pytest.raises(TriremeError, match="x-request-timeout-ms"):
        deadline_s(header, 60)


def test_the_shorter_time_limit_counts() -> None:
    assert deadline_s(None, 60) == 60
    assert deadline_s("1500", 60) == 1.5
    assert deadline_s("90000", 60) == 60
