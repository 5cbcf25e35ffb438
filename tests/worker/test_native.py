from __future__ import annotations

import asyncio
import base64
import math
import struct
from typing import Any

import aiohttp
import pytest

from protocol.generation import Delta, Done, Failed, Prompt, Started, decode_event

HELLO = [{"role": "user", "content": "hello"}]


def text_of(events: list[Any], index: int = 0) -> str:
    return "".join(e.text for e in events if isinstance(e, Delta) and e.index == index)


async def test_a_stream_is_started_deltas_done(worker: Any) -> None:
    events = await worker.events(messages=HELLO, sampling={"seed": 5})
    started, *deltas, done = events
    assert isinstance(started, Started)
    assert (started.instance_id, started.seed) == (worker.runtime.instance_id, 5)
    assert all(isinstance(delta, Delta) for delta in deltas)
    assert [delta.pos for delta in deltas] == list(range(8))
    assert deltas[-1].finish_reason == "stop"
    assert done == Done(prompt_tokens=started.prompt_tokens, completion_tokens=8)


async def test_the_same_request_gives_the_same_text(worker: Any) -> None:
    first = await worker.events(prompt="hello")
    assert text_of(first) == text_of(await worker.events(prompt="hello"))
    assert text_of(first) != text_of(await worker.events(prompt="hello!"))


async def test_choices_each_have_their_positions(worker: Any) -> None:
    events = await worker.events(prompt="hello", sampling={"n": 3, "max_tokens": 4})
    for index in range(3):
        mine = [e for e in events if isinstance(e, Delta) and e.index == index]
        assert [e.pos for e in mine] == [0, 1, 2, 3]
        assert mine[-1].finish_reason == "length"
    assert events[-1] == Done(prompt_tokens=5, completion_tokens=12)


async def test_a_stop_string_ends_a_choice_and_its_sequence(start_worker: Any) -> None:
    worker = await start_worker(sim_tokens=1000, sim_itl_ms=2)
    whole = text_of(await worker.events(prompt="hello", sampling={"max_tokens": 10}))
    third = whole.split()[2]
    events = await worker.events(prompt="hello", sampling={"stop": [third, "zzz"]})
    assert text_of(events) == whole[: whole.index(third)]
    last = [e for e in events if isinstance(e, Delta)][-1]
    assert (last.finish_reason, last.stop_reason) == ("stop", third)
    assert events[-1] == Done(prompt_tokens=5, completion_tokens=3)
    assert await worker.until_idle(0.3) < 0.3


async def test_a_stop_in_one_choice_leaves_the_others_running(worker: Any) -> None:
    sampling = {"n": 2, "max_tokens": 6}
    whole = await worker.events(prompt="hello", sampling=sampling)
    word = text_of(whole, 1).split()[1]
    assert word not in text_of(whole, 0)
    events = await worker.events(prompt="hello", sampling={**sampling, "stop": [word]})
    assert text_of(events, 0) == text_of(whole, 0)
    assert len(text_of(events, 1)) < len(text_of(whole, 1))
    assert events[-1] == Done(prompt_tokens=5, completion_tokens=8)


async def test_echo_and_prompt_logprobs_send_the_prompt_once(worker: Any) -> None:
    events = await worker.events(prompt="hi", echo=True, sampling={"max_tokens": 1})
    assert events[1] == Prompt([104, 105], "hi")
    scored = await worker.events(
        prompt="hi", echo=True, sampling={"max_tokens": 1, "n": 2, "prompt_logprobs": 2}
    )
    (prompt,) = [e for e in scored if isinstance(e, Prompt)]
    assert prompt.logprobs is not None
    assert [one.token for one in prompt.logprobs] == ["h", "i"]
    assert prompt.logprobs[0].logprob is None
    assert len(prompt.logprobs[1].top) == 2


async def test_a_long_scored_prompt_comes_in_pieces(worker: Any) -> None:
    text = "abcdefghi " * 100
    events = await worker.events(prompt=text, sampling={"max_tokens": 1, "prompt_logprobs": 1})
    pieces = [e for e in events if isinstance(e, Prompt)]
    assert len(pieces) > 1
    assert [piece.text for piece in pieces] == [text] + [""] * (len(pieces) - 1)
    assert [i for piece in pieces for i in piece.ids] == list(text.encode())
    logprobs = [one for piece in pieces for one in piece.logprobs or []]
    assert "".join(one.token for one in logprobs) == text
    assert [one.logprob is None for one in logprobs] == [True] + [False] * (len(text) - 1)


async def test_logprobs_are_one_a_token(worker: Any) -> None:
    events = await worker.events(prompt="hi", sampling={"logprobs": 3})
    for delta in (e for e in events if isinstance(e, Delta)):
        assert delta.logprobs is not None
        assert [one.id for one in delta.logprobs] == delta.ids
        assert all(len(one.top) == 3 for one in delta.logprobs)


async def test_best_of_answers_the_choices_with_the_best_mean_logprob(worker: Any) -> None:
    sampling = {"n": 6, "seed": 3, "max_tokens": 5, "logprobs": 1, "stop": ["ar"]}
    every = [e for e in await worker.events(prompt="hi", sampling=sampling) if isinstance(e, Delta)]

    def worth(index: int) -> float:
        own = [one.logprob for e in every if e.index == index for one in e.logprobs or []]
        return sum(own) / len(own)

    ranked = sorted(range(6), key=worth, reverse=True)
    events = await worker.events(prompt="hi", sampling={**sampling, "n": 2, "best_of": 6})
    for rank in (0, 1):
        assert text_of(events, rank) == text_of(every, ranked[rank])
        own = [e for e in every if e.index == ranked[rank]]
        kept = [e for e in events if isinstance(e, Delta) and e.index == rank]
        assert [(e.pos, e.ids, e.logprobs, e.finish_reason, e.stop_reason) for e in kept] == [
            (e.pos, e.ids, e.logprobs, e.finish_reason, e.stop_reason) for e in own
        ]
    assert {e.index for e in events if isinstance(e, Delta)} == {0, 1}
    made = sum(len(e.ids) for e in every)
    assert events[-1] == Done(prompt_tokens=2, completion_tokens=made)


async def test_best_of_shows_no_logprobs_that_nobody_asked_for(worker: Any) -> None:
    sampling = {"best_of": 3, "prompt_logprobs": 1}
    events = await worker.events(prompt="hi", sampling=sampling)
    assert [type(e) for e in events[:2]] == [Started, Prompt]
    deltas = [e for e in events if isinstance(e, Delta)]
    assert {e.index for e in deltas} == {0}
    assert all(e.logprobs is None for e in deltas)
    assert events[-1].completion_tokens == 24


async def test_best_of_ends_at_its_deadline_and_with_its_reader(start_worker: Any) -> None:
    worker = await start_worker(sim_tokens=1000, sim_itl_ms=5)
    events = await worker.events(prompt="x", sampling={"best_of": 3}, deadline_s=0.2)
    assert isinstance(events[-1], Failed)
    assert events[-1].code == "deadline_exceeded"
    await worker.until_idle(0.5)


async def test_token_ids_as_prompt(worker: Any) -> None:
    by_ids = await worker.events(prompt_ids=list(b"hello"))
    assert text_of(by_ids) == text_of(await worker.events(prompt="hello"))


async def test_stream_interval_joins_tokens(start_worker: Any) -> None:
    worker = await start_worker(stream_interval=3)
    events = await worker.events(prompt="hello")
    assert [len(e.ids) for e in events if isinstance(e, Delta)] == [1, 3, 3, 1]


async def test_a_long_prompt_is_tokenized_too(worker: Any) -> None:
    events = await worker.events(prompt="x" * 20_000, sampling={"max_tokens": 1})
    assert events[0].prompt_tokens == 20_000


@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({"prompt": "x", "model": "other"}, 404, "model_not_found", "model"),
        ({"prompt": "x", "instance_id": "0" * 32}, 421, "wrong_instance", None),
        ({"prompt": "x", "digest": "0" * 64}, 421, "wrong_instance", None),
        ({"prompt": "x" * 40_000}, 400, "context_length_exceeded", "prompt"),
        ({"prompt": ""}, 400, "invalid_value", "prompt"),
        ({"prompt_ids": [999999999]}, 400, "invalid_value", "prompt"),
        (
            {"messages": HELLO, "chat_template_kwargs": {"x": 1}},
            400,
            "unknown_parameter",
            "chat_template_kwargs",
        ),
        (
            {"prompt": "x", "sampling": {"logit_bias": {"abc": 1}}},
            400,
            "invalid_value",
            "logit_bias",
        ),
        (
            {"prompt": "x", "sampling": {"use_beam_search": True}},
            400,
            "unsupported_by_model",
            "use_beam_search",
        ),
        ({"prompt": "x", "suffix": "y"}, 400, "unsupported_by_model", "suffix"),
        ({"prompt": "x", "suffix": "y", "echo": True}, 400, "invalid_body", None),
        (
            {"prompt": "x", "sampling": {"n": 2, "best_of": 1}},
            400,
            "invalid_value",
            "best_of",
        ),
        ({"prompt": "x", "sampling": {"n": 0}}, 400, "invalid_value", "sampling.n"),
        ({}, 400, "invalid_body", None),
    ],
)
async def test_a_bad_request_is_refused_by_its_status(
    worker: Any, fields: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    body = {"request_id": "r", "model": "sim", **fields}
    got, answer = await worker.post("/native/generate", body)
    assert (got, answer["error"]["code"], answer["error"]["param"]) == (status, code, param)


@pytest.mark.parametrize("body", [b"", b'{"a":', b"[" * 100_000, b'{"request_id": "\xff"}', b"[]"])
async def test_a_body_that_is_no_object_is_a_400(worker: Any, body: bytes) -> None:
    status, answer = await worker.post("/native/generate", body)
    assert (status, answer["error"]["code"]) == (400, "invalid_body")


async def test_unknown_routes_and_methods_are_json(worker: Any) -> None:
    status, answer = await worker.post("/nope", {})
    assert (status, answer["error"]["code"]) == (404, "unknown_url")
    async with worker.http.get(worker.url + "/native/generate") as response:
        assert (await response.json())["error"]["code"] == "method_not_supported"


async def test_a_passed_deadline_fails_the_stream(start_worker: Any) -> None:
    worker = await start_worker(sim_ttft_ms=10_000)
    events = await worker.events(prompt="x", deadline_s=0.05)
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Failed)
    assert events[-1].code == "deadline_exceeded"
    assert len(events) == 2
    await worker.until_idle(0.3)


async def test_a_full_queue_is_503_with_a_time_to_retry(start_worker: Any) -> None:
    worker = await start_worker(
        sim_itl_ms=200, sim_max_running=1, max_queue_requests=1, sim_tokens=50
    )
    running = [asyncio.create_task(worker.events(prompt=f"{i}")) for i in range(2)]
    await worker.until(lambda: worker.runtime.load().waiting)
    body = {"request_id": "r", "model": "sim", "prompt": "x"}
    async with worker.http.post(worker.url + "/native/generate", json=body) as response:
        assert response.status == 503
        assert int(response.headers["Retry-After"]) >= 1
        assert (await response.json())["error"]["code"] == "overloaded"
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    await worker.until_idle(0.3)


async def test_the_concurrency_limit_bounds_what_the_engine_sees(start_worker: Any) -> None:
    worker = await start_worker(limit_worker_concurrency=2, sim_itl_ms=5, sim_tokens=4)
    running = [asyncio.create_task(worker.events(prompt=f"{i}")) for i in range(6)]
    most = 0
    while not all(task.done() for task in running):
        load = worker.runtime.load()
        most = max(most, load.running + load.waiting)
        await asyncio.sleep(0.001)
    assert most == 2
    assert all(isinstance(task.result()[-1], Done) for task in running)


async def open_stream(worker: Any, **fields: Any) -> aiohttp.ClientResponse:
    body = {"request_id": "r", "model": "sim", "prompt": "x", **fields}
    response = await worker.http.post(worker.url + "/native/generate", json=body)
    assert isinstance(decode_event(await response.content.readline()), Started)
    return response


async def test_a_client_that_leaves_before_the_first_token_frees_its_slot(
    start_worker: Any,
) -> None:
    worker = await start_worker(sim_ttft_ms=60_000)
    response = await open_stream(worker, sampling={"n": 3})
    assert worker.runtime.load().running == 3
    response.close()
    assert await worker.until_idle(0.3) < 0.3


async def test_a_client_that_leaves_in_mid_stream_frees_its_slot(start_worker: Any) -> None:
    worker = await start_worker(sim_itl_ms=5, sim_tokens=100_000)
    response = await open_stream(worker)
    for _ in range(3):
        await response.content.readline()
    response.close()
    assert await worker.until_idle(0.3) < 0.3


async def test_a_client_that_leaves_the_queue_frees_its_place(start_worker: Any) -> None:
    worker = await start_worker(sim_itl_ms=5, sim_tokens=100_000, limit_worker_concurrency=1)
    running = await open_stream(worker)
    waiting = await open_stream(worker)
    admission = worker.runtime.ready.admission
    assert admission.queued == 1
    waiting.close()
    await worker.until(lambda: admission.queued == 0)
    running.close()
    await worker.until_idle(0.3)


async def test_a_hundred_abandoned_streams_leave_nothing_behind(start_worker: Any) -> None:
    worker = await start_worker(sim_itl_ms=1, sim_tokens=100_000)
    streams = await asyncio.gather(*(open_stream(worker) for _ in range(100)))
    for stream in streams:
        stream.close()
    await worker.until_idle(1.0)
    admission = worker.runtime.ready.admission
    assert (admission._present, admission._running, admission._waiting_tokens) == (0, 0, 0)


def unit(vector: str) -> list[float]:
    raw = base64.b64decode(vector)
    return list(struct.unpack(f"<{len(raw) // 4}f", raw))


async def test_embeddings_have_length_one_and_count_all_tokens(worker: Any) -> None:
    body = {"request_id": "e", "model": "sim", "inputs": ["hello", [1, 2, 3]]}
    status, answer = await worker.post("/native/embed", body)
    assert status == 200
    assert (answer["prompt_tokens"], answer["dimensions"]) == (8, 64)
    for vector in answer["embeddings_b64"]:
        assert math.hypot(*unit(vector)) == pytest.approx(1, abs=1e-5)


async def test_cut_embeddings_are_normalised_again(worker: Any) -> None:
    body = {"request_id": "e", "model": "sim", "inputs": ["hello"], "dimensions": 8}
    _, answer = await worker.post("/native/embed", body)
    (vector,) = map(unit, answer["embeddings_b64"])
    assert len(vector) == 8
    assert math.hypot(*vector) == pytest.approx(1, abs=1e-5)


async def test_long_embedding_inputs_are_chunked_or_truncated(start_worker: Any) -> None:
    chunking = await start_worker(max_model_len=10)
    cutting = await start_worker(max_model_len=10, embed_in_truncate=True)

    async def embed(worker: Any, text: str) -> tuple[list[float], int]:
        body = {"request_id": "e", "model": "sim", "inputs": [text]}
        _, answer = await worker.post("/native/embed", body)
        return unit(answer["embeddings_b64"][0]), answer["prompt_tokens"]

    head, long = "a" * 10, "a" * 10 + "b" * 15
    assert await embed(cutting, long) == (await embed(cutting, head))
    whole, tokens = await embed(chunking, long)
    assert tokens == 25
    assert whole != (await embed(chunking, head))[0]


@pytest.mark.parametrize(
    ("inputs", "code", "param"),
    [
        ([""], "invalid_value", "input[0]"),
        (["a", [999999]], "invalid_value", "input[1]"),
        ([], "invalid_value", "inputs"),
    ],
)
async def test_bad_embedding_inputs_are_named(
    worker: Any, inputs: list[Any], code: str, param: str
) -> None:
    body = {"request_id": "e", "model": "sim", "inputs": inputs}
    status, answer = await worker.post("/native/embed", body)
    assert (status, answer["error"]["code"], answer["error"]["param"]) == (400, code, param)


async def test_tokenize_reads_prompts_and_messages(worker: Any) -> None:
    _, prompt = await worker.post("/native/tokenize", {"model": "sim", "prompt": "a<|end|>"})
    assert prompt == {"ids": [97, 256], "context_length": 32768}
    _, chat = await worker.post("/native/tokenize", {"model": "sim", "messages": HELLO})
    assert bytes(chat["ids"]) == b"User: hello\nAssistant:"
    status, _ = await worker.post("/native/tokenize", {"model": "sim"})
    assert status == 400


async def test_tokenize_reads_messages_as_generate_does(worker: Any) -> None:
    tool = {"type": "function", "function": {"name": "look"}}
    answered = [*HELLO, {"role": "assistant", "content": "Well"}]
    going_on = {"add_generation_prompt": False, "continue_final_message": True}
    asked: list[dict[str, Any]] = [
        {"messages": HELLO, "tools": [tool]},
        {"messages": answered, **going_on},
    ]
    for fields in asked:
        _, counted = await worker.post("/native/tokenize", {"model": "sim", **fields})
        events = await worker.events(**fields)
        assert events[0].prompt_tokens == len(counted["ids"])
    assert bytes(counted["ids"]) == b"User: hello\nAssistant: Well"


async def test_describe_is_the_record(worker: Any) -> None:
    async with worker.http.get(worker.url + "/native/describe") as response:
        record = await response.json()
    assert record["instance_id"] == worker.runtime.instance_id
    assert record["state"] == "ready"
    assert record["address"] == worker.url
    (model,) = record["models"]
    assert (model["name"], model["engine"], model["context_length"]) == ("sim", "sim", 32768)
    assert len(model["digest"]) == 64


async def test_a_client_that_stops_reading_is_cut_off(
    start_worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.edge.SEND_TIMEOUT_S", 0.2)
    worker = await start_worker(sim_tokens=1_000_000, max_model_len=2_000_000)
    host, port = worker.url.removeprefix("http://").split(":")
    body = b'{"request_id": "r", "model": "sim", "prompt": "x", "sampling": {"logprobs": 20}}'
    head = f"POST /native/generate HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
    writer.write(head.encode() + body)
    await worker.until_running()
    await worker.until_idle(10.0)
    assert not reader.at_eof()
    writer.close()


async def test_tokens_are_spelled_and_decoded(worker: Any) -> None:
    asked = {"model": "sim", "prompt": "a<|end|>", "entries": True}
    _, found = await worker.post("/native/tokenize", asked)
    assert found == {"ids": [97, 256], "context_length": 32768, "entries": ["a", "<|end|>"]}
    _, text = await worker.post("/native/detokenize", {"model": "sim", "ids": found["ids"]})
    assert text == {"text": "a<|end|>"}
    status, refused = await worker.post("/native/detokenize", {"model": "sim", "ids": [10**6]})
    assert (status, refused["error"]["param"]) == (400, "tokens")


async def test_messages_are_tokenized_as_the_template_is_told(worker: Any) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "so"}]

    async def tokens(**fields: Any) -> tuple[int, Any]:
        status, answer = await worker.post("/native/tokenize", {"model": "sim", **fields})
        return status, answer

    _, closed = await tokens(messages=turns, add_generation_prompt=False)
    _, opened = await tokens(messages=turns)
    assert opened["ids"][: len(closed["ids"])] == closed["ids"]
    assert len(opened["ids"]) > len(closed["ids"])
    _, going_on = await tokens(
        messages=turns, add_generation_prompt=False, continue_final_message=True
    )
    assert bytes(going_on["ids"]).endswith(b"so")
    status, refused = await tokens(messages=turns, chat_template_kwargs={"unused": 1})
    assert (status, refused["error"]["code"]) == (400, "unknown_parameter")


async def test_scores_are_the_cosines_of_the_embeddings(worker: Any) -> None:
    texts = ["a lease", "a lease", "something else"]
    embedded = {"request_id": "e", "model": "sim", "inputs": texts}
    _, answer = await worker.post("/native/embed", embedded)
    first, *others = map(unit, answer["embeddings_b64"])
    asked = {"request_id": "s", "model": "sim", "queries": texts[:1], "documents": texts[1:]}
    _, found = await worker.post("/native/score", asked)
    expected = [sum(a * b for a, b in zip(first, one, strict=True)) for one in others]
    assert found["scores"] == pytest.approx(expected, abs=1e-5)
    assert found["scores"][0] == pytest.approx(1.0, abs=1e-5)
    assert found["prompt_tokens"] == sum(map(len, texts))
    status, refused = await worker.post("/native/score", {**asked, "queries": texts})
    assert (status, refused["error"]["code"]) == (400, "invalid_body")
