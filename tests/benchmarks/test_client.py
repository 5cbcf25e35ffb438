"""What a client asks for and what it hears, on both wires."""

from __future__ import annotations

import random

import orjson
import pytest

from benchmarks.client import Heard, Load, hear_native, hear_openai
from protocol.generation import Delta, Done, Failed, GenerateRequest, Started, encode_event
from protocol.openai import ChatCompletionRequest


def test_prompts_have_their_length_and_no_common_beginning() -> None:
    load = Load("m", tokens=4, prompt_words=48, endpoint="completions")
    rng = random.Random(0)
    prompts = [load.body(rng)["prompt"] for _ in range(8)]
    assert {len(prompt.split()) for prompt in prompts} == {48}
    assert len({tuple(prompt.split()[:4]) for prompt in prompts}) == 8


def test_a_prefix_comes_before_each_prompt() -> None:
    load = Load("m", tokens=4, prompt_words=2, prefix="one two", extra_body={"seed": 3})
    body = load.body(random.Random(0))
    words = body["messages"][0]["content"].split()
    assert (words[:2], len(words)) == (["one", "two"], 4)
    assert body["seed"] == 3


def test_both_wires_ask_for_the_same() -> None:
    chat = Load("m", tokens=7, prompt_words=5).body(random.Random(1))
    native = Load("m", tokens=7, prompt_words=5, endpoint="native").body(random.Random(1))
    request = GenerateRequest.model_validate(native)
    asked = ChatCompletionRequest.model_validate(chat)
    assert request.messages == chat["messages"]
    assert (request.sampling.max_tokens, asked.token_limit) == (7, 7)
    assert request.sampling.temperature == asked.temperature == 0
    assert request.sampling.ignore_eos is asked.ignore_eos is True
    assert request.conv_stops


def data(frame: object) -> bytes:
    return b"data: " + orjson.dumps(frame) + b"\n"


def test_it_hears_openais_stream() -> None:
    heard = Heard()
    usage = {
        "completion_tokens": 2,
        "prompt_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 4},
    }
    lines = [
        (data({"choices": [{"delta": {"role": "assistant", "content": ""}}]}), ""),
        (b": ping\n", ""),
        (data({"choices": [{"delta": {"content": "a"}}]}), "a"),
        (data({"choices": [{"text": "b", "finish_reason": "length"}]}), "b"),
        (data({"choices": [], "usage": usage}), ""),
        (b"data: [DONE]\n", ""),
    ]
    assert [hear_openai(line, heard) for line, _ in lines] == [text for _, text in lines]
    assert heard == Heard(2, 9, 4, finish="length", done=True)


def test_it_hears_an_error_in_the_stream() -> None:
    heard = Heard()
    assert not hear_openai(data({"error": {"message": "lost"}}), heard)
    assert "lost" in (heard.error or "")


def test_it_hears_the_native_stream() -> None:
    heard = Heard()
    events = [
        (Started(5, "i", "d"), ""),
        (Delta(0, 0, [1], ""), ""),
        (Delta(0, 1, [2], "b", finish_reason="length"), "b"),
        (Done(prompt_tokens=5, completion_tokens=2, cached_tokens=3), ""),
    ]
    found = [hear_native(encode_event(event), heard) for event, _ in events]
    assert found == [text for _, text in events]
    assert heard == Heard(2, 5, 3, finish="length", done=True)


@pytest.mark.parametrize("code", ["overloaded", "worker_lost"])
def test_it_hears_a_native_failure(code: str) -> None:
    heard = Heard()
    assert not hear_native(encode_event(Failed(code, "no")), heard)
    assert heard.error == f"{code}: no"
