"""Every route over real sockets, through OpenAI's own client where it has one."""

from __future__ import annotations

from typing import Any

import aiohttp
import openai
import pytest
from openai.types import Completion, CreateEmbeddingResponse, Model
from openai.types.chat import ChatCompletion

from protocol.errors import TriremeError
from protocol.fleet import ModelRecord
from tests.gateway.fakes import MODEL, WORDS, FakeWorker, record, stack, until

TEXT = "".join(WORDS)
HELLO: list[Any] = [{"role": "user", "content": "hi"}]


def client(url: str, key: str = "none", **options: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=url + "/v1", api_key=key, **{"max_retries": 0} | options)


async def test_chat_is_answered() -> None:
    async with stack(FakeWorker()) as s, client(s.url) as api:
        answer = await api.chat.completions.create(model=MODEL, messages=HELLO)
        ChatCompletion.model_validate(answer.model_dump(), strict=True)
        assert answer.choices[0].message.content == TEXT
        assert answer.choices[0].finish_reason == "stop"
        assert answer.id.startswith("chatcmpl-")
        assert len(answer.id) == len("chatcmpl-") + 22
        assert answer.usage is not None
        assert answer.usage.total_tokens == 7 + len(WORDS)


async def test_chat_is_streamed() -> None:
    async with stack(FakeWorker()) as s, client(s.url) as api:
        stream = await api.chat.completions.create(
            model=MODEL,
            messages=HELLO,
            stream=True,
            n=2,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        texts = {0: "", 1: ""}
        for chunk in chunks[:-1]:
            choice = chunk.choices[0]
            texts[choice.index] += choice.delta.content or ""
        assert texts == {0: TEXT, 1: TEXT}
        assert [chunk.choices[0].delta.role for chunk in chunks[:2]] == ["assistant"] * 2
        assert chunks[-1].choices == []
        assert chunks[-1].usage is not None
        assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1


async def test_a_stream_has_the_right_headers_and_ends_in_done(http: aiohttp.ClientSession) -> None:
    body = {"model": MODEL, "messages": HELLO, "stream": True}
    async with (
        stack(FakeWorker()) as s,
        http.post(s.url + "/v1/chat/completions", json=body) as answer,
    ):
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        assert answer.headers["X-Accel-Buffering"] == "no"
        assert answer.headers["Cache-Control"] == "no-cache"
        assert answer.headers["X-Request-Id"]
        assert (await answer.read()).endswith(b'"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n')


async def test_completions_of_several_prompts() -> None:
    async with stack(FakeWorker()) as s, client(s.url) as api:
        answer = await api.completions.create(
            model=MODEL, prompt=["a", "b"], n=2, max_tokens=2, echo=True, logprobs=1
        )
        assert [choice.text for choice in answer.choices] == ["aHello there"] * 2 + [
            "bHello there"
        ] * 2
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        assert answer.id.startswith("cmpl-")
        plain = await api.completions.create(model=MODEL, prompt="a", logprobs=1)
        Completion.model_validate(plain.model_dump(), strict=True)
        stream = await api.completions.create(
            model=MODEL, prompt=["a", "b"], n=2, max_tokens=2, stream=True
        )
        texts = dict.fromkeys(range(4), "")
        async for chunk in stream:
            texts[chunk.choices[0].index] += chunk.choices[0].text
        assert set(texts.values()) == {"Hello there"}


async def test_many_prompts_run_a_few_at_a_time() -> None:
    async with stack(FakeWorker()) as s, client(s.url) as api:
        answer = await api.completions.create(model=MODEL, prompt=["a"] * 80, max_tokens=1)
        assert len(answer.choices) == 80
        stream = await api.completions.create(
            model=MODEL, prompt=["a"] * 80, max_tokens=1, stream=True
        )
        assert sorted([c.choices[0].index async for c in stream]) == list(range(80))


async def test_embeddings_as_base64_and_as_numbers(http: aiohttp.ClientSession) -> None:
    async with stack(FakeWorker()) as s, client(s.url) as api:
        answer = await api.embeddings.create(model=MODEL, input=["a", "b"])  # base64 is its default
        CreateEmbeddingResponse.model_validate(answer.model_dump(), strict=True)
        assert [item.embedding for item in answer.data] == [[0.5, -0.25, 0.125, 1.0]] * 2
        assert answer.usage.prompt_tokens == answer.usage.total_tokens == 6
        numbers = await api.embeddings.create(
            model=MODEL, input=[[1, 2]], encoding_format="float", dimensions=2
        )
        assert numbers.data[0].embedding == [0.5, -0.25]
        path = f"{s.url}/v1/engines/{MODEL}/embeddings"
        async with http.post(path, json={"input": "a"}) as engine:
            assert (await engine.json())["data"][0]["embedding"] == [0.5, -0.25, 0.125, 1.0]


async def test_models_are_listed_with_their_context() -> None:
    async with stack(FakeWorker()) as s, client(s.url) as api:
        (card,) = (await api.models.list()).data
        Model.model_validate(card.model_dump(), strict=True)
        assert card.id == MODEL
        assert card.model_extra is not None
        assert card.model_extra["max_model_len"] == 2048
        assert card.model_extra["permission"][0]["object"] == "model_permission"
        assert (await api.models.retrieve(MODEL)).id == MODEL
        with pytest.raises(openai.NotFoundError) as caught:
            await api.models.retrieve("nope")
        assert caught.value.code == "model_not_found"


async def test_a_model_id_may_hold_slashes(http: aiohttp.ClientSession) -> None:
    async with stack(FakeWorker()) as s:
        model = ModelRecord(name="org/model")
        s.controller.set(record("w1", s.workers[0].address, models=(model,)))
        await until(lambda: "org/model" in s.app.state.gateway.view.snapshot.models)
        async with http.get(s.url + "/v1/models/org/model") as answer:
            assert (await answer.json())["id"] == "org/model"
        path = "/v1/engines/org/model/embeddings"
        async with http.post(s.url + path, json={"input": "a"}) as answer:
            assert answer.status == 200


async def test_token_check(http: aiohttp.ClientSession) -> None:
    prompts = [
        {"model": MODEL, "prompt": "a b c", "max_tokens": 2045},
        {"model": MODEL, "prompt": "a b c", "max_tokens": 2046},
    ]
    async with (
        stack(FakeWorker()) as s,
        http.post(s.url + "/api/v1/token_check", json={"prompts": prompts}) as answer,
    ):
        assert await answer.json() == {
            "prompts": [
                {"fits": True, "tokenCount": 3, "contextLength": 2048},
                {"fits": False, "tokenCount": 3, "contextLength": 2048},
            ]
        }


async def test_the_seeds_chat_route_takes_a_text(http: aiohttp.ClientSession) -> None:
    body = {"model": MODEL, "messages": "USER: hi", "repetition_penalty": 1.1}
    async with (
        stack(FakeWorker()) as s,
        http.post(s.url + "/api/v1/chat/completions", json=body) as answer,
    ):
        assert (await answer.json())["choices"][0]["message"]["content"] == TEXT
        assert s.workers[0].requests[0].prompt == "USER: hi"
        assert s.workers[0].requests[0].sampling.repetition_penalty == 1.1


async def test_requests_are_fenced_and_timed(http: aiohttp.ClientSession) -> None:
    async with stack(FakeWorker()) as s:
        for path, body in (
            ("/v1/chat/completions", {"messages": HELLO}),
            ("/v1/embeddings", {"input": "a"}),
        ):
            headers = {"x-request-timeout-ms": "5000"}
            async with http.post(
                s.url + path, json={"model": MODEL, **body}, headers=headers
            ) as answer:
                assert answer.status == 200
        request, (_, embed) = s.workers[0].requests[0], s.workers[0].bodies[0]
        assert (request.instance_id, request.digest) == ("w1", "d" * 64)
        assert request.deadline_s is not None
        assert 4 < request.deadline_s <= 5
        assert (embed["instance_id"], embed["digest"]) == ("w1", "d" * 64)


async def test_tenants_are_salted_by_their_keys() -> None:
    async with stack(FakeWorker(), api_keys=("key-a", "key-b")) as s:
        for key in ("key-a", "key-b", "key-a"):
            async with client(s.url, key) as api:
                await api.chat.completions.create(model=MODEL, messages=HELLO)
        one, two, three = (request.cache_salt for request in s.workers[0].requests)
        assert one == three != two
        assert "key" not in one


async def test_with_sharing_switched_on_keys_share_the_cache_and_nothing_else() -> None:
    async with stack(FakeWorker(), api_keys=("key-a", "key-b"), share_prefix_cache=True) as s:
        for key in ("key-a", "key-b"):
            async with client(s.url, key) as api:
                made = await api.responses.create(model=MODEL, input="hi")
        assert [request.cache_salt for request in s.workers[0].requests] == ["", ""]
        async with client(s.url, "key-a") as api:
            with pytest.raises(openai.NotFoundError):
                await api.responses.retrieve(made.id)


async def test_tenants_are_told_apart_where_they_share_a_cache(
    http: aiohttp.ClientSession,
) -> None:
    async with stack(FakeWorker(), api_keys=("key-a", "key-b"), share_prefix_cache=True) as s:
        for key in ("key-a", "key-b"):
            async with client(s.url, key) as api:
                await api.chat.completions.create(model=MODEL, messages=HELLO)
        await _embed(http, s.url, "key-a")
        one, two = s.workers[0].requests
        _, embedded = s.workers[0].bodies[0]
        assert one.cache_salt == two.cache_salt == ""
        assert one.tenant == embedded["tenant"] != two.tenant
        assert "key" not in one.tenant


async def _embed(http: aiohttp.ClientSession, url: str, key: str) -> None:
    body, headers = {"model": MODEL, "input": "a"}, {"Authorization": f"Bearer {key}"}
    async with http.post(url + "/v1/embeddings", json=body, headers=headers) as answer:
        assert answer.status == 200


async def test_a_worker_of_another_token_is_no_fault_of_the_client() -> None:
    async with stack(FakeWorker(token="t")) as s, client(s.url) as api:
        with pytest.raises(openai.APIStatusError) as caught:
            await api.chat.completions.create(model=MODEL, messages=HELLO)
        assert (caught.value.status_code, caught.value.code) == (502, "worker_unreachable")
    async with stack(FakeWorker(token="t"), cluster_token="t") as s, client(s.url) as api:
        assert await api.chat.completions.create(model=MODEL, messages=HELLO)


async def test_readyz_waits_for_a_model(http: aiohttp.ClientSession) -> None:
    async with stack() as s:
        async with http.get(s.url + "/readyz") as answer:
            assert answer.status == 503
            assert (await answer.json())["reason"] == "no model can be served"
        for path in ("/health", "/healthz", "/livez", "/ping", "/version"):
            async with http.get(s.url + path) as answer:
                assert answer.status == 200
        s.controller.set(record())
        await until(lambda: s.app.state.gateway.view.snapshot.models)
        async with http.get(s.url + "/readyz") as answer:
            assert answer.status == 200


async def test_a_known_model_without_a_worker_is_503() -> None:
    async with stack(FakeWorker()) as s, client(s.url) as api:
        s.controller.set(record("w1", s.workers[0].address, state="draining"))
        await until(lambda: not s.app.state.gateway.view.snapshot.models)
        with pytest.raises(openai.InternalServerError) as caught:
            await api.chat.completions.create(model=MODEL, messages=HELLO)
        assert (caught.value.status_code, caught.value.code) == (503, "no_worker")
        assert caught.value.response.headers["retry-after"] == "1"


async def test_a_model_whose_last_worker_left_is_shown_with_none(
    http: aiohttp.ClientSession,
) -> None:
    async with stack(FakeWorker()) as s:
        s.controller.set(left=("w1",))
        await until(lambda: not s.app.state.gateway.view.snapshot.workers)
        async with http.get(s.url + "/metrics") as answer:
            shown = await answer.text()
    assert f'model_workers{{model="{MODEL}",state="ready"}} 0.0' in shown


async def test_metrics_name_no_model_of_a_clients_choice(http: aiohttp.ClientSession) -> None:
    async with stack(FakeWorker()) as s, client(s.url) as api:
        await api.chat.completions.create(model=MODEL, messages=HELLO)
        stream = await api.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
        deltas = len([chunk async for chunk in stream]) - 1
        with pytest.raises(openai.NotFoundError):
            await api.chat.completions.create(model="evil", messages=HELLO)
        async with http.post(s.url + "/v1/evil") as answer:
            assert answer.status == 404
        async with http.get(s.url + "/metrics") as answer:
            shown = await answer.text()
    assert "evil" not in shown
    route = 'route="/v1/chat/completions"'
    assert f'requests_total{{code="",model="{MODEL}",{route},status="200"}} 2.0' in shown
    refused = 'code="model_not_found",model="unknown"'
    assert f'requests_total{{{refused},{route},status="404"}} 1.0' in shown
    assert 'code="unknown_url",model="unknown",route="unknown",status="404"' in shown
    assert f'model_workers{{model="{MODEL}",state="ready"}} 1.0' in shown
    assert f'model_workers{{model="{MODEL}",state="failed"}} 0.0' in shown
    assert "\ntrireme_gateway_keys_file_ok " not in shown, "there is no such file"
    assert "trireme_gateway_requests_in_flight 0.0" in shown
    assert f'time_to_first_token_seconds_count{{model="{MODEL}"}} 1.0' in shown, "of the stream"
    assert f'inter_token_latency_seconds_count{{model="{MODEL}"}} {deltas - 1}.0' in shown
    assert f'e2e_request_latency_seconds_count{{model="{MODEL}"}} 2.0' in shown
    assert 'trireme_gateway_worker_breaker_state{worker="w1"} 0.0' in shown


async def test_an_error_of_the_worker_keeps_its_status_and_names_whole_fields() -> None:
    error = TriremeError("invalid_value", "no such token", param="prompt[3]")
    async with stack(FakeWorker(refuse=error)) as s, client(s.url) as api:
        with pytest.raises(openai.BadRequestError) as caught:
            await api.completions.create(model=MODEL, prompt=[999_999_999], stream=True)
        assert (caught.value.param, caught.value.code) == ("prompt", "invalid_value")
        assert len(s.workers[0].requests) == 1, "a deterministic failure is never tried again"
