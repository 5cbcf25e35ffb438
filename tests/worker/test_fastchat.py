from __future__ import annotations

import asyncio
import base64
import json
import struct
from itertools import pairwise
from typing import Any

import pytest

from protocol.conversation import Conversation, from_messages, render
from protocol.fastchat import NETWORK_ERROR_TEXT


async def frames(worker: Any, **params: Any) -> list[dict[str, Any]]:
    async with worker.http.post(worker.url + "/worker_generate_stream", json=params) as response:
        assert response.status == 200
        body = await response.read()
    assert body.endswith(b"\0")
    return [json.loads(frame) for frame in body.split(b"\0")[:-1]]


async def test_text_is_cumulative_and_the_last_two_frames_tell_the_end(worker: Any) -> None:
    got = await frames(worker, prompt="hello", max_new_tokens=3, echo=False)
    texts = [frame["text"] for frame in got]
    assert all(later.startswith(sooner) for sooner, later in pairwise(texts))
    assert [frame["finish_reason"] for frame in got] == [None, None, None, "length"]
    assert texts[-1] == texts[-2]
    assert all(frame["error_code"] == 0 for frame in got)


async def test_usage_is_exact(worker: Any) -> None:
    for limit in (1, 5, 8):
        last = (await frames(worker, prompt="hello", max_new_tokens=limit))[-1]
        assert last["usage"] == {
            "prompt_tokens": 5,
            "completion_tokens": limit,
            "total_tokens": 5 + limit,
        }


async def test_echo_is_the_default_and_null_means_it(worker: Any) -> None:
    without = (await frames(worker, prompt="hello", echo=False))[-1]["text"]
    assert (await frames(worker, prompt="hello"))[-1]["text"] == "hello" + without
    assert (await frames(worker, prompt="hello", echo=None))[-1]["text"] == "hello" + without


async def test_nulls_mean_the_defaults(worker: Any) -> None:
    nulls = dict.fromkeys(
        "temperature top_p top_k repetition_penalty presence_penalty frequency_penalty "
        "max_new_tokens logprobs stop stop_token_ids best_of use_beam_search seed".split()
    )
    assert await frames(worker, prompt="x", **nulls) == await frames(worker, prompt="x")


async def test_the_same_answer_at_once(worker: Any) -> None:
    params = {"prompt": "hello", "max_new_tokens": 4, "logprobs": 1}
    status, answer = await worker.post("/worker_generate", params)
    assert status == 200
    assert answer == (await frames(worker, **params))[-1]


@pytest.mark.parametrize("as_list", [False, True])
async def test_the_first_stop_by_position_wins(worker: Any, as_list: bool) -> None:
    whole = (await frames(worker, prompt="hello", echo=False))[-1]["text"]
    second, fourth = whole.split()[1], whole.split()[3]
    stop = [fourth, second] if as_list else second
    last = (await frames(worker, prompt="hello", echo=False, stop=stop))[-1]
    assert last["text"] == whole[: whole.index(second)]
    assert (last["finish_reason"], last["usage"]["completion_tokens"]) == ("stop", 2)


async def test_an_empty_stop_is_none(worker: Any) -> None:
    assert len(await frames(worker, prompt="x", stop="")) == 9
    assert len(await frames(worker, prompt="x", stop=["", "zzz"])) == 9


async def test_logprobs_have_fastchats_four_lists(worker: Any) -> None:
    last = (await frames(worker, prompt="hi", max_new_tokens=2, logprobs=1))[-1]
    found = last["logprobs"]
    assert found["tokens"][:2] == ["h", "i"]
    assert found["token_logprobs"][0] is None
    assert found["top_logprobs"][0] is None
    assert all(isinstance(value, float) for value in found["token_logprobs"][1:])
    assert found["text_offset"][:3] == [0, 1, 2]
    assert "".join(found["tokens"]) == last["text"]
    silent = (await frames(worker, prompt="hi", max_new_tokens=2, logprobs=1, echo=False))[-1]
    assert len(silent["logprobs"]["tokens"]) == 2


async def test_more_new_tokens_than_there_is_room_for_are_cut(start_worker: Any) -> None:
    worker = await start_worker(max_model_len=12, sim_tokens=100)
    last = (await frames(worker, prompt="hello", max_new_tokens=1000))[-1]
    assert (last["usage"]["completion_tokens"], last["finish_reason"]) == (7, "length")


@pytest.mark.parametrize(
    ("params", "number"),
    [
        ({"prompt": "x" * 13}, 40303),
        ({"prompt": "x", "temperature": 3}, 40302),
        ({"prompt": "x", "max_new_tokens": 0}, 40302),
        ({"prompt": "x", "images": ["abc"]}, 40301),
        ({"prompt": "x", "use_beam_search": True}, 40301),
        ({"prompt": ""}, 40302),
    ],
)
async def test_a_bad_request_is_an_error_frame(
    start_worker: Any, params: dict[str, Any], number: int
) -> None:
    worker = await start_worker(max_model_len=12)
    got = await frames(worker, **params)
    assert [frame["error_code"] for frame in got] == [number]
    assert got[0]["text"]
    assert (await worker.post("/worker_generate", params))[1] == got[0]


async def test_a_failing_engine_is_fastchats_network_error(start_worker: Any) -> None:
    worker = await start_worker(sim_itl_ms=10, sim_tokens=1000)
    running = asyncio.create_task(frames(worker, prompt="x"))
    await worker.until_running()
    await worker.runtime.ready.engine.close()
    last = (await running)[-1]
    assert last["error_code"] == 50001
    assert last["text"].startswith(NETWORK_ERROR_TEXT)


async def test_status_counts_running_and_waiting(start_worker: Any) -> None:
    worker = await start_worker(
        model_names=("a", "b"), limit_worker_concurrency=1, sim_ttft_ms=10_000
    )
    tasks = [asyncio.create_task(frames(worker, prompt=str(i))) for i in range(3)]
    await worker.until(lambda: worker.runtime.ready.admission.queued == 2)
    _, status = await worker.post("/worker_get_status", {})
    assert status == {"model_names": ["a", "b"], "speed": 1, "queue_length": 3}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await worker.until_idle(0.3)


async def test_a_client_that_leaves_a_call_at_once_frees_its_slot(start_worker: Any) -> None:
    worker = await start_worker(sim_ttft_ms=60_000)
    for path in ("/worker_generate", "/worker_generate_stream"):
        call = asyncio.create_task(worker.post(path, {"prompt": "x"}))
        await worker.until_running()
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        assert await worker.until_idle(0.3) < 0.3


async def test_count_token_reads_special_tokens(worker: Any) -> None:
    _, answer = await worker.post("/count_token", {"prompt": "hello<|end|>", "model": "sim"})
    assert answer == {"count": 6, "error_code": 0}
    assert (await worker.post("/count_token", {"prompt": ""}))[1]["count"] == 0


async def test_model_details_is_the_context_length(start_worker: Any) -> None:
    worker = await start_worker(max_model_len=77)
    assert (await worker.post("/model_details", {"model": "sim"}))[1] == {"context_length": 77}


async def test_the_conversation_renders_what_the_worker_renders(start_worker: Any) -> None:
    worker = await start_worker(conv_template="vicuna_v1.1")
    _, answer = await worker.post("/worker_get_conv_template", {"model": "sim"})
    wire = answer["conv"]
    assert set(wire) == {
        "name", "system_template", "system_message", "roles", "messages", "offset", "sep_style",
        "sep", "sep2", "stop_str", "stop_token_ids",
    }  # fmt: skip
    messages = [{"role": "user", "content": "hi"}]
    prompt = render(from_messages(Conversation.from_wire(wire), messages))
    _, chat = await worker.post("/native/tokenize", {"model": "sim", "messages": messages})
    assert bytes(chat["ids"]).decode() == prompt


@pytest.mark.parametrize("encoding", [None, "base64"])
async def test_embeddings_as_floats_or_base64(worker: Any, encoding: str | None) -> None:
    params = {"model": "sim", "input": ["hello", "you"], "encoding_format": encoding}
    _, answer = await worker.post("/worker_get_embeddings", params)
    assert answer["token_num"] == 8
    first, second = answer["embedding"]
    if encoding == "base64":
        first, second = (struct.unpack("<64f", base64.b64decode(text)) for text in (first, second))
    assert len(first) == len(second) == 64
    assert sum(value * value for value in first) == pytest.approx(1, abs=1e-5)


async def test_an_empty_embedding_input_is_an_error_frame(worker: Any) -> None:
    _, answer = await worker.post("/worker_get_embeddings", {"model": "sim", "input": [""]})
    assert answer["error_code"] == 40302


@pytest.mark.parametrize("count", [0, 2049])
async def test_no_inputs_or_too_many_are_a_400(worker: Any, count: int) -> None:
    status, answer = await worker.post("/worker_get_embeddings", {"input": ["a"] * count})
    assert (status, answer["error"]["param"]) == (400, "input")


async def test_a_body_without_a_prompt_is_a_400(worker: Any) -> None:
    status, answer = await worker.post("/worker_generate", {})
    assert (status, answer["error"]["code"]) == (400, "missing_required_parameter")
