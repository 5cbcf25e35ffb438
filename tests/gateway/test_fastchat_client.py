"""A FastChat worker behind our gateway: same prompts as FastChat's own, same texts out."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import orjson
import pytest

from gateway.fastchat_client import needs_native
from gateway.translate import completion_requests
from protocol.openai import CompletionRequest
from tests.gateway.fake_fastchat import FakeFastChatWorker, fastchat_record
from tests.gateway.fakes import MODEL, FakeWorker, Stack, record, serving, stack, until

HELLO: list[Any] = [{"role": "user", "content": "hi"}]
PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions. USER: hi ASSISTANT:"
)


@contextlib.asynccontextmanager
async def with_fastchat(
    worker: FakeFastChatWorker, *native: FakeWorker, **settings: Any
) -> AsyncIterator[Stack]:
    async with serving(worker.app()) as address, stack(*native, **settings) as s:
        s.controller.set(fastchat_record(address), *s.controller.workers)
        await until(lambda: "fastchat-1" in s.app.state.gateway.view.snapshot.workers)
        yield s


async def post(
    http: aiohttp.ClientSession, s: Stack, path: str, **body: Any
) -> tuple[int, dict[str, Any]]:
    async with http.post(s.url + path, json={"model": MODEL, **body}) as answer:
        return answer.status, orjson.loads(await answer.read())


async def chat(http: aiohttp.ClientSession, s: Stack, **body: Any) -> tuple[int, dict[str, Any]]:
    return await post(http, s, "/v1/chat/completions", **({"messages": HELLO} | body))


async def streamed(http: aiohttp.ClientSession, s: Stack, **body: Any) -> list[Any]:
    fields = {"model": MODEL, "messages": HELLO, "stream": True} | body
    async with http.post(s.url + "/v1/chat/completions", json=fields) as answer:
        assert answer.status == 200
        lines = (await answer.read()).split(b"\n\n")
    return [orjson.loads(line[6:]) for line in lines if line and line != b"data: [DONE]"]


async def test_chat_sends_the_prompt_and_parameters_that_fastchat_would(
    http: aiohttp.ClientSession,
) -> None:
    worker = FakeFastChatWorker()
    async with with_fastchat(worker) as s:
        status, answer = await chat(http, s, stop="END", max_tokens=7, presence_penalty=0.5)
        assert status == 200
        assert answer["choices"][0]["message"]["content"] == "Hello world"
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert answer["usage"]["completion_tokens"] == 4
        assert answer["usage"]["prompt_tokens"] == len(PROMPT.split())
    (params,) = worker.bodies("/worker_generate_stream")
    assert params["prompt"] == PROMPT
    assert params["echo"] is False
    assert (params["temperature"], params["top_p"], params["top_k"]) == (0.7, 1.0, -1)
    assert (params["max_new_tokens"], params["presence_penalty"]) == (7, 0.5)
    assert params["stop"] == ["END"]


async def test_the_templates_stops_are_added_for_chat_only(http: aiohttp.ClientSession) -> None:
    worker = FakeFastChatWorker(template="llama-3")
    async with with_fastchat(worker) as s:
        await chat(http, s)
        await post(http, s, "/v1/completions", prompt="a")
    chatted, completed = worker.bodies("/worker_generate_stream")
    assert chatted["stop"] == ["<|eot_id|>"]
    assert chatted["stop_token_ids"] == [128001, 128009]
    assert (completed["stop"], completed["stop_token_ids"]) == ([], [])


async def test_template_and_context_are_asked_once(http: aiohttp.ClientSession) -> None:
    worker = FakeFastChatWorker()
    async with with_fastchat(worker) as s:
        for _ in range(3):
            await chat(http, s)
    assert len(worker.bodies("/worker_get_conv_template")) == 1
    assert len(worker.bodies("/model_details")) == 1
    assert len(worker.bodies("/count_token")) == 3


async def test_cumulative_texts_are_streamed_as_deltas(http: aiohttp.ClientSession) -> None:
    async with with_fastchat(FakeFastChatWorker(finish_reason="length")) as s:
        chunks = await streamed(http, s)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert [delta.get("content") for delta in deltas] == [None, "He", "llo", " wor", "ld", None]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


async def test_half_a_character_waits_and_a_shorter_text_repeats_nothing(
    http: aiohttp.ClientSession,
) -> None:
    worker = FakeFastChatWorker(texts=("a\ufffd", "aé", "aéST", "aé", "aé\ufffd"))
    async with with_fastchat(worker) as s:
        chunks = await streamed(http, s)
        texts = [chunk["choices"][0]["delta"].get("content") for chunk in chunks]
        assert texts == [None, "a", "é", "ST", None]
        worker.texts = ("a", "aé\ufffd")
        _, answer = await chat(http, s)
        assert answer["choices"][0]["message"]["content"] == "aé\ufffd"


async def test_max_tokens_is_what_the_context_leaves(http: aiohttp.ClientSession) -> None:
    worker = FakeFastChatWorker(context_length=len(PROMPT.split()) + 5)
    async with with_fastchat(worker) as s:
        await chat(http, s)
        await chat(http, s, max_tokens=50)
        await chat(http, s, max_tokens=3)
        sent = [body["max_new_tokens"] for body in worker.bodies("/worker_generate_stream")]
        assert sent == [5, 5, 3]
    worker = FakeFastChatWorker(context_length=4)
    async with with_fastchat(worker) as s:
        status, answer = await chat(http, s)
        assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
        assert answer["error"]["param"] == "messages"
        assert "4 tokens" in answer["error"]["message"]
        assert worker.bodies("/worker_generate_stream") == []


async def test_several_choices_are_streams_side_by_side(http: aiohttp.ClientSession) -> None:
    async with with_fastchat(FakeFastChatWorker()) as s:
        _, answer = await chat(http, s, n=3)
        assert [c["message"]["content"] for c in answer["choices"]] == ["Hello world"] * 3
        assert answer["usage"]["completion_tokens"] == 12
        assert answer["usage"]["prompt_tokens"] == len(PROMPT.split())


async def test_a_completion_with_echo_and_logprobs(http: aiohttp.ClientSession) -> None:
    async with with_fastchat(FakeFastChatWorker(logprobs=True)) as s:
        _, answer = await post(http, s, "/v1/completions", prompt="Say: ", echo=True)
        assert answer["choices"][0]["text"] == "Say: Hello world"
        _, answer = await post(http, s, "/v1/completions", prompt="Say: ", logprobs=1)
        logprobs = answer["choices"][0]["logprobs"]
        assert logprobs["tokens"] == ["t0", "t1", "t2", "t3"]
        assert logprobs["token_logprobs"] == [0.0, -1.0, -2.0, -3.0]


async def test_embeddings(http: aiohttp.ClientSession) -> None:
    worker = FakeFastChatWorker()
    async with with_fastchat(worker) as s:
        _, answer = await post(http, s, "/v1/embeddings", input=["a", "b"])
        assert [item["embedding"] for item in answer["data"]] == [[0.5, -0.25]] * 2
        assert answer["usage"]["prompt_tokens"] == 4
        for fields, param in (
            ({"input": [1]}, "input"),
            ({"input": "a", "dimensions": 1}, "dimensions"),
        ):
            status, answer = await post(http, s, "/v1/embeddings", **fields)
            assert (status, answer["error"]["param"]) == (400, param)


async def test_token_check(http: aiohttp.ClientSession) -> None:
    async with with_fastchat(FakeFastChatWorker()) as s:
        prompts = [{"model": MODEL, "prompt": "a b", "max_tokens": 98}]
        async with http.post(s.url + "/api/v1/token_check", json={"prompts": prompts}) as answer:
            assert await answer.json() == {
                "prompts": [{"fits": True, "tokenCount": 2, "contextLength": 100}]
            }


async def test_the_other_dialects_are_served_too(http: aiohttp.ClientSession) -> None:
    worker = FakeFastChatWorker()
    async with with_fastchat(worker) as s:
        _, message = await post(http, s, "/v1/messages", messages=HELLO, max_tokens=7)
        assert message["content"][0]["text"] == "Hello world"
        _, response = await post(http, s, "/v1/responses", input="hi")
        assert response["output"][0]["content"][0]["text"] == "Hello world"
        thinking = {"type": "enabled", "budget_tokens": 1024}
        status, refused = await post(
            http, s, "/v1/messages", messages=HELLO, max_tokens=2000, thinking=thinking
        )
        assert status == 400
        assert "thinking" in refused["error"]["message"]
    prompts = [body["prompt"] for body in worker.bodies("/worker_generate_stream")]
    assert prompts == [PROMPT, PROMPT]


async def test_messages_are_counted_as_they_are_rendered(http: aiohttp.ClientSession) -> None:
    worker = FakeFastChatWorker()
    async with with_fastchat(worker) as s:
        path = "/v1/messages/count_tokens"
        status, answer = await post(http, s, path, messages=HELLO)
        assert (status, answer) == (200, {"input_tokens": len(PROMPT.split())})
        assert worker.bodies("/count_token")[-1]["prompt"] == PROMPT
        tools = [{"name": "look", "input_schema": {"type": "object"}}]
        status, answer = await post(http, s, path, messages=HELLO, tools=tools)
        assert (status, answer["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"seed": 1}, "seed"),
        ({"logit_bias": {"1": 1}}, "logit_bias"),
        ({"min_p": 0.1}, "min_p"),
        ({"min_tokens": 1}, "min_tokens"),
        ({"ignore_eos": True}, "ignore_eos"),
        ({"skip_special_tokens": False}, "skip_special_tokens"),
        ({"priority": 1}, "priority"),
        ({"logprobs": True, "top_logprobs": 1}, "top_logprobs"),
        ({"chat_template_kwargs": {"a": 1}}, "chat_template_kwargs"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"use_beam_search": True, "n": 2}, "use_beam_search"),
    ],
)
async def test_what_the_wire_cannot_carry_is_refused_by_name(
    http: aiohttp.ClientSession, fields: dict[str, Any], param: str
) -> None:
    worker = FakeFastChatWorker()
    async with with_fastchat(worker) as s:
        status, answer = await chat(http, s, **fields)
        assert (status, answer["error"]["code"], answer["error"]["param"]) == (
            400,
            "unsupported_parameter",
            param,
        )
        assert worker.calls == []


@pytest.mark.parametrize(
    ("fields", "param"), [({"best_of": 2}, "best_of"), ({"suffix": "x"}, "suffix")]
)
def test_completions_that_the_wire_cannot_carry(fields: dict[str, Any], param: str) -> None:
    asked = CompletionRequest.model_validate({"model": "m", "prompt": "a", **fields})
    [request] = completion_requests(asked, request_id="r", deadline_s=1.0, cache_salt="")
    assert needs_native(request) == param


async def test_such_a_request_goes_to_a_native_worker_of_the_model(
    http: aiohttp.ClientSession,
) -> None:
    native = FakeWorker("w2")
    async with with_fastchat(FakeFastChatWorker(), native) as s:
        for _ in range(5):
            assert (await chat(http, s, seed=1))[0] == 200
        assert len(native.requests) == 5


@pytest.mark.parametrize("stream", [False, True])
async def test_a_fault_of_the_worker_decides_the_status_and_leaks_nothing(
    http: aiohttp.ClientSession, stream: bool
) -> None:
    async with with_fastchat(FakeFastChatWorker(fail_with=50001)) as s:
        status, answer = await chat(http, s, stream=stream)
        assert (status, answer["error"]["code"]) == (500, "internal_error")
        assert "secret" not in str(answer)


async def test_an_out_of_memory_goes_to_another_worker(http: aiohttp.ClientSession) -> None:
    async with with_fastchat(FakeFastChatWorker(fail_with=50002), FakeWorker("w2")) as s:
        for _ in range(5):
            assert (await chat(http, s))[0] == 200


async def test_a_cut_answer_is_a_lost_worker(http: aiohttp.ClientSession) -> None:
    async with with_fastchat(FakeFastChatWorker(cut=True)) as s:
        status, answer = await chat(http, s)
        assert (status, answer["error"]["code"]) == (502, "worker_lost")


async def test_a_role_that_the_template_lacks_is_the_clients_mistake(
    http: aiohttp.ClientSession,
) -> None:
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}]
    turns = [
        {"role": "assistant", "tool_calls": calls},
        {"role": "tool", "content": "7", "tool_call_id": "c"},
    ]
    async with with_fastchat(FakeFastChatWorker()) as s:
        status, answer = await chat(http, s, messages=turns)
        assert (status, answer["error"]["param"]) == (400, "messages")
        status, _ = await chat(http, s, messages=[{"role": "developer", "content": "x"}, *HELLO])
        assert status == 200


async def test_a_client_that_goes_away_closes_all_its_streams(http: aiohttp.ClientSession) -> None:
    worker = FakeFastChatWorker(hang=True)
    async with with_fastchat(worker) as s:
        body = {"model": MODEL, "messages": HELLO, "stream": True, "n": 2}
        async with http.post(s.url + "/v1/chat/completions", json=body) as answer:
            await answer.content.readany()
            await until(lambda: worker.running == 2)
            answer.close()
        await until(lambda: worker.running == 0)


async def test_what_a_gone_worker_said_is_forgotten(http: aiohttp.ClientSession) -> None:
    worker = FakeFastChatWorker()
    async with with_fastchat(worker) as s:
        await chat(http, s)
        there = s.controller.workers
        s.controller.set(record("w9"), left=("fastchat-1",))
        await until(lambda: "fastchat-1" not in s.app.state.gateway.view.snapshot.workers)
        s.controller.set(*there)
        await until(lambda: "fastchat-1" in s.app.state.gateway.view.snapshot.workers)
        await chat(http, s)
    assert len(worker.bodies("/worker_get_conv_template")) == 2
