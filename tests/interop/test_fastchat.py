"""Trireme's tiers and the tiers of fschat 0.2.36 work together, over real processes.

Skipped without TRIREME_FASTCHAT_PYTHON; README.md beside this file says how to get one.
"""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.interop.servers import Launcher, Server, Stack, models_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

QUESTION = [{"role": "user", "content": "How are you?"}]
HISTORY = [
    {"role": "system", "content": "Answer in one word."},
    {"role": "user", "content": "Hi there"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "How are you?"},
]
PARTS = [{"type": "text", "text": "Hi there"}, {"type": "text", "text": "How are you?"}]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 24}


def post(server: Server, path: str, **body: Any) -> Any:
    answer = httpx.post(server.url + path, json=body, timeout=120)
    assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text}"
    return answer.json()


def stream(server: Server, path: str, **body: Any) -> list[dict[str, Any]]:
    """The events of a server-sent stream, which has to end in [DONE]."""
    with httpx.stream("POST", server.url + path, json=body | {"stream": True}, timeout=120) as s:
        assert s.status_code == 200, s.read()
        lines = [line.removeprefix("data: ") for line in s.iter_lines() if line.startswith("data:")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def chat(server: Server, model: str, messages: list[dict[str, Any]], **more: Any) -> Any:
    body = GREEDY | more
    return post(server, "/v1/chat/completions", model=model, messages=messages, **body)


def said(answer: Any) -> str:
    text: str = answer["choices"][0]["message"]["content"]
    return text


@pytest.fixture(
    params=[
        pytest.param(("our_gateway", "their_model"), id="our gateway, FastChat's worker"),
        pytest.param(("their_gateway", "our_model"), id="FastChat's gateway, our worker"),
    ]
)
def pair(request: pytest.FixtureRequest, stack: Stack) -> tuple[Server, str]:
    """A gateway of one stack and the model of the other stack's worker."""
    gateway, model = request.param
    return getattr(stack, gateway), getattr(stack, model)


# ---- every route of a gateway, over the other stack's worker ------------------------------------


def test_the_model_is_listed(pair: tuple[Server, str]) -> None:
    gateway, model = pair
    assert model in models_of(gateway)


def test_chat_is_answered(pair: tuple[Server, str]) -> None:
    answer = chat(*pair, QUESTION)
    assert answer["object"] == "chat.completion"
    assert answer["model"] == pair[1]
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert said(answer)
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["completion_tokens"] in (23, 24), "FastChat's worker counts one too few"


def test_streamed_chat_is_the_same_text(pair: tuple[Server, str]) -> None:
    gateway, model = pair
    events = stream(gateway, "/v1/chat/completions", model=model, messages=QUESTION, **GREEDY)
    deltas = [event["choices"][0]["delta"] for event in events]
    assert deltas[0]["role"] == "assistant"
    text = "".join(delta.get("content") or "" for delta in deltas)
    assert text == said(chat(gateway, model, QUESTION))
    assert events[-1]["choices"][0]["finish_reason"] == "length"
    assert len(deltas) > 4, "it comes in pieces"


def test_a_completion_is_answered_and_streamed(pair: tuple[Server, str]) -> None:
    gateway, model = pair
    body = {"model": model, "prompt": "the user", **GREEDY}
    answer = post(gateway, "/v1/completions", **body)
    assert answer["object"] == "text_completion"
    text = answer["choices"][0]["text"]
    assert text
    events = stream(gateway, "/v1/completions", **body)
    assert "".join(event["choices"][0]["text"] for event in events) == text


def test_several_choices_are_answered(pair: tuple[Server, str]) -> None:
    answer = chat(*pair, QUESTION, n=2)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert len({choice["message"]["content"] for choice in answer["choices"]}) == 1


def test_a_stop_string_ends_the_text(pair: tuple[Server, str]) -> None:
    whole = said(chat(*pair, QUESTION))
    stop = whole[8:11]
    answer = chat(*pair, QUESTION, stop=[stop])
    assert said(answer) == whole[: whole.index(stop)]
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_a_prompt_longer_than_the_context_is_refused(pair: tuple[Server, str]) -> None:
    gateway, model = pair
    body = {"model": model, "messages": [{"role": "user", "content": "!" * 3000}], "max_tokens": 8}
    answer = httpx.post(gateway.url + "/v1/chat/completions", json=body, timeout=120)
    assert answer.status_code == 400
    assert "2048" in answer.text


def test_requests_at_the_same_time_keep_to_their_own_text(pair: tuple[Server, str]) -> None:
    questions = [[{"role": "user", "content": f"{word}?"}] for word in ("Why", "How", "Who", "a")]
    one_by_one = [said(chat(*pair, question)) for question in questions]
    with ThreadPoolExecutor(len(questions)) as pool:
        together = list(pool.map(lambda question: said(chat(*pair, question)), questions))
    assert together == one_by_one
    assert len(set(together)) == len(questions)


def test_embeddings_are_unit_vectors_of_the_same_size(pair: tuple[Server, str]) -> None:
    gateway, model = pair
    answer = post(gateway, "/v1/embeddings", model=model, input=["the user", "human"])
    vectors = [item["embedding"] for item in answer["data"]]
    assert [item["index"] for item in answer["data"]] == [0, 1]
    assert [len(vector) for vector in vectors] == [64, 64]
    for vector in vectors:
        assert math.isclose(math.hypot(*vector), 1.0, rel_tol=1e-3)
    assert answer["usage"]["prompt_tokens"] > 0


def test_token_check_counts_with_the_models_tokenizer(pair: tuple[Server, str]) -> None:
    gateway, model = pair
    asked = [
        {"model": model, "prompt": "the user", "max_tokens": 16},
        {"model": model, "prompt": "the user", "max_tokens": 2048},
    ]
    fits, too_long = post(gateway, "/api/v1/token_check", prompts=asked)["prompts"]
    assert fits["fits"] is True
    assert too_long["fits"] is False
    assert fits["contextLength"] == 2048
    assert 0 < fits["tokenCount"] < 10


# ---- the same request, the same text ------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "more"),
    [
        pytest.param(QUESTION, {}, id="one turn"),
        pytest.param(HISTORY, {}, id="system message and history"),
        pytest.param(HISTORY[1:], {"max_tokens": 64}, id="history"),
        pytest.param([{"role": "user", "content": PARTS}], {}, id="text parts"),
        pytest.param(QUESTION, {"stop": ["zzz", "AS"]}, id="stop strings"),
        pytest.param(QUESTION, {"max_tokens": 1}, id="one token"),
        pytest.param(QUESTION, {"n": 2}, id="two choices"),
        pytest.param(QUESTION, {"top_p": 0, "temperature": 1}, id="greedy by top_p"),
    ],
)
@pytest.mark.parametrize("model", ["their_model", "our_model"])
def test_both_gateways_give_the_same_chat(
    stack: Stack, model: str, messages: list[dict[str, Any]], more: dict[str, Any]
) -> None:
    name = getattr(stack, model)
    ours = chat(stack.our_gateway, name, messages, **more)["choices"]
    theirs = chat(stack.their_gateway, name, messages, **more)["choices"]
    assert [c["message"]["content"] for c in ours] == [c["message"]["content"] for c in theirs]
    assert [c["finish_reason"] for c in ours] == [c["finish_reason"] for c in theirs]


def test_both_workers_give_the_same_chat(stack: Stack) -> None:
    for gateway in (stack.our_gateway, stack.their_gateway):
        for messages in (QUESTION, HISTORY):
            ours = chat(gateway, stack.our_model, messages)
            theirs = chat(gateway, stack.their_model, messages)
            assert said(ours) == said(theirs)
            assert ours["usage"]["prompt_tokens"] == theirs["usage"]["prompt_tokens"]


def test_special_tokens_typed_to_a_fastchat_worker_are_read_as_there(stack: Stack) -> None:
    # Not so for a worker of ours: it reads what a user types as text, whatever it looks like.
    typed = [{"role": "user", "content": "</s> USER: <s>x"}]
    ours = chat(stack.our_gateway, stack.their_model, typed)
    assert said(ours) == said(chat(stack.their_gateway, stack.their_model, typed))


@pytest.mark.parametrize("messages", [QUESTION, HISTORY[1:], HISTORY])
def test_fastchats_gateway_renders_what_the_models_jinja_template_renders(
    stack: Stack, jinja_model: str, messages: list[dict[str, Any]]
) -> None:
    ours = chat(stack.our_gateway, jinja_model, messages)
    theirs = chat(stack.their_gateway, jinja_model, messages)
    assert said(ours) == said(theirs)
    assert ours["usage"]["prompt_tokens"] == theirs["usage"]["prompt_tokens"]


@pytest.mark.parametrize("echo", [False, True])
def test_both_gateways_give_the_same_completion_of_fastchats_worker(
    stack: Stack, echo: bool
) -> None:
    body = {"model": stack.their_model, "prompt": "polite answers", "echo": echo, **GREEDY}
    ours = post(stack.our_gateway, "/v1/completions", **body)
    theirs = post(stack.their_gateway, "/v1/completions", **body)
    assert ours["choices"][0]["text"] == theirs["choices"][0]["text"]


def test_both_gateways_give_the_same_embeddings_of_fastchats_worker(stack: Stack) -> None:
    body = {"model": stack.their_model, "input": ["polite answers", "the"]}
    ours = post(stack.our_gateway, "/v1/embeddings", **body)
    theirs = post(stack.their_gateway, "/v1/embeddings", **body)
    for mine, other in zip(ours["data"], theirs["data"], strict=True):
        assert mine["embedding"] == pytest.approx(other["embedding"], abs=1e-5)


# ---- the worker's routes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prompt",
    ["Hi", "Hi</s>there", "USER: a ASSISTANT: b</s>USER: c ASSISTANT:", "a<s>b</s><unk>c", ""],
)
def test_count_token_counts_special_tokens_as_fastchat_does(stack: Stack, prompt: str) -> None:
    ours = post(stack.our_worker, "/count_token", model=stack.our_model, prompt=prompt)
    assert ours == post(stack.their_worker, "/count_token", prompt=prompt)


def test_a_special_token_counts_as_one(stack: Stack) -> None:
    def count(prompt: str) -> int:
        number: int = post(stack.our_worker, "/count_token", prompt=prompt)["count"]
        return number

    assert count("Hi</s>Hi") - count("Hi") == count("Hi") - count("") + 1


@pytest.mark.parametrize(
    "prompt",
    ["the user", "USER: a ASSISTANT: b</s>USER: c ASSISTANT:", "polite</s></s> answers <s>the"],
)
def test_worker_generate_reads_special_tokens_as_fastchat_does(stack: Stack, prompt: str) -> None:
    body = {"prompt": prompt, "temperature": 0.0, "max_new_tokens": 16, "echo": False}
    ours = post(stack.our_worker, "/worker_generate", model=stack.our_model, **body)
    theirs = post(stack.their_worker, "/worker_generate", model=stack.their_model, **body)
    assert ours["text"] == theirs["text"]
    assert ours["finish_reason"] == theirs["finish_reason"]
    assert ours["error_code"] == 0
    assert ours["usage"]["prompt_tokens"] == theirs["usage"]["prompt_tokens"]


def test_worker_generate_stream_is_framed_and_cumulative(stack: Stack) -> None:
    for worker in (stack.our_worker, stack.their_worker):
        body = {"prompt": "the user", "temperature": 0.0, "max_new_tokens": 16, "echo": False}
        answer = httpx.post(worker.url + "/worker_generate_stream", json=body, timeout=120)
        assert answer.content.endswith(b"\0")
        frames = [json.loads(frame) for frame in answer.content.split(b"\0")[:-1]]
        for before, after in itertools.pairwise(frames):
            assert after["text"].startswith(before["text"])
        assert frames[-1]["finish_reason"] in ("stop", "length")
        assert frames[-1]["error_code"] == 0


def test_both_workers_send_the_same_conversation_template(stack: Stack) -> None:
    ours = post(stack.our_worker, "/worker_get_conv_template", model=stack.our_model)
    assert ours == post(stack.their_worker, "/worker_get_conv_template")


def test_both_workers_say_the_same_context_length(stack: Stack) -> None:
    ours = post(stack.our_worker, "/model_details", model=stack.our_model)
    assert ours == post(stack.their_worker, "/model_details")


def test_both_workers_say_their_status(stack: Stack) -> None:
    status = post(stack.our_worker, "/worker_get_status")
    assert status["model_names"] == [stack.our_model]
    assert status.keys() == post(stack.their_worker, "/worker_get_status").keys()


# ---- FastChat's tools and our controller --------------------------------------------------------


@pytest.mark.parametrize("model", ["our_model", "their_model"])
def test_fastchats_test_message_is_answered(stack: Stack, launcher: Launcher, model: str) -> None:
    name = getattr(stack, model)
    command = [launcher.fastchat_python, "-m", "fastchat.serve.test_message"]
    command += ["--controller-address", stack.controller.url, "--model-name", name]
    command += ["--message", "How are you?", "--temperature", "0", "--max-new-tokens", "24"]
    done = subprocess.run(
        command, cwd=launcher.folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"'{stack.our_model}', '{stack.their_model}'" in done.stdout
    answer = said(chat(stack.our_gateway, name, QUESTION))
    assert f"ASSISTANT: {answer[:8]}" in done.stdout


def test_the_controller_hands_out_both_workers(stack: Stack) -> None:
    workers = {stack.our_model: stack.our_worker, stack.their_model: stack.their_worker}
    for model, worker in workers.items():
        assert post(stack.controller, "/get_worker_address", model=model) == {"address": worker.url}
    assert post(stack.controller, "/get_worker_address", model="nobody's") == {"address": ""}


def test_a_fastchat_worker_that_beats_every_45_s_outlives_our_own_lease(stack: Stack) -> None:
    time.sleep(7)  # our own workers' lease is 5 s
    assert post(stack.controller, "/refresh_all_workers") is None
    assert stack.their_model in post(stack.controller, "/list_models")["models"]
    assert stack.their_model in models_of(stack.our_gateway)


def test_a_fastchat_worker_that_dies_is_an_error_and_not_a_hang(
    stack: Stack, mortal: tuple[Server, str]
) -> None:
    worker, model = mortal
    messages = [{"role": "user", "content": "Tell me more"}]  # some hundred tokens
    body = {"model": model, "messages": messages, "max_tokens": 1500, "stream": True}
    url = stack.our_gateway.url + "/v1/chat/completions"
    with httpx.stream("POST", url, json=body | {"temperature": 0}, timeout=60) as answer:
        lines = (line.removeprefix("data: ") for line in answer.iter_lines() if line)
        first = [next(lines) for _ in range(4)]
        worker.process.kill()
        rest = list(lines)
    assert "choices" in first[-1]
    assert json.loads(rest[-1])["error"]["code"] == "worker_lost"
    assert "[DONE]" not in rest, "an answer cut short does not look whole"

    answer = httpx.post(url, json={"model": model, "messages": QUESTION}, timeout=60)
    assert answer.status_code in (502, 503, 504)
    assert answer.json()["error"]["code"]
