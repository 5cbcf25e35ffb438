"""How answers are chosen, by the official client: best_of, beam search, a suffix, seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
import transformers as hf

from tests.stack.noise import save_noise
from tests.stack.processes import Stack, running

FIM = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, with the embedded model's tokenizer and StarCoder's control tokens."""
    made = tmp_path_factory.mktemp("models") / "noise"
    save_noise(made, control_tokens=FIM, spread=0.08)
    return made


@pytest.fixture(scope="module")
def stack(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running(tmp_path_factory.mktemp("stack")) as made:
        made.add_worker("--model-path", str(folder), "--dtype", "float32")
        made.add_worker("--engine", "sim", "--model-names", "sim")
        made.wait_serving()
        yield made


@pytest.fixture
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    url = f"{stack.gateway.url}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as made:
        yield made


def complete(client: openai.OpenAI, **fields: Any) -> Any:
    asked: dict[str, Any] = {"model": "noise", "prompt": "Once", "max_tokens": 12, **fields}
    return client.completions.create(**asked)


def beams(**fields: Any) -> dict[str, Any]:
    extra = {"use_beam_search": True, "return_tokens_as_token_ids": True, **fields}
    return {"extra_body": extra, "logprobs": 1}


def ids_of(choice: Any) -> list[int]:
    return [int(token.removeprefix("token_id:")) for token in choice.logprobs.tokens]


def test_best_of_answers_the_best_of_all(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"seed": 7, "logprobs": 2, "prompt": ["Once", "Twice", "Thrice"]}
    every = complete(client, n=6, **asked)
    best = complete(client, n=2, best_of=6, **asked)
    assert [choice.index for choice in best.choices] == list(range(6))
    for prompt in range(3):
        own = every.choices[prompt * 6 : prompt * 6 + 6]
        own.sort(key=lambda choice: -statistics.mean(choice.logprobs.token_logprobs))
        for choice, kept in zip(own[:2], best.choices[prompt * 2 :][:2], strict=True):
            assert (kept.text, kept.logprobs) == (choice.text, choice.logprobs)
    assert best.usage == every.usage
    plain = complete(client, best_of=6, seed=7)
    assert plain.choices[0].text == best.choices[0].text
    assert plain.choices[0].logprobs is None


@pytest.mark.parametrize(
    ("width", "n", "length_penalty"), [(2, 2, 1.0), (4, 3, 0.0), (5, 1, 2.0), (16, 16, 1.0)]
)
def test_beam_search_is_that_of_transformers(
    client: openai.OpenAI, folder: Path, width: int, n: int, length_penalty: float
) -> None:
    model = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("Once upon a time", return_tensors="pt").input_ids
    expected = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        num_beams=width,
        num_return_sequences=n,
        length_penalty=length_penalty,
        early_stopping=False,
        max_new_tokens=12,
    )
    with ThreadPoolExecutor(4) as pool:
        beside = [
            pool.submit(complete, client, prompt=f"Beside {number}", seed=number)
            for number in range(8)
        ]
        answer = complete(
            client,
            prompt="Once upon a time",
            n=n,
            best_of=width,
            **beams(length_penalty=length_penalty),
        )
        assert all(one.result().choices for one in beside)
    found = [ids_of(choice) for choice in answer.choices]
    texts = [row[ids.shape[1] :] for row in expected.tolist()]
    end = tokenizer.eos_token_id
    assert found == [row[: row.index(end) + 1] if end in row else row for row in texts]
    assert answer.usage.completion_tokens == sum(map(len, found))


def test_beam_search_in_chat_whole_and_streamed(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "noise",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 10,
        "n": 3,
        "extra_body": {"use_beam_search": True},
    }
    whole = client.chat.completions.create(**asked)
    texts = [choice.message.content for choice in whole.choices]
    assert len(set(texts)) == 3
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts
    scored = client.chat.completions.create(**asked, logprobs=True, top_logprobs=3)
    for choice in scored.choices:
        assert [len(one.top_logprobs) for one in choice.logprobs.content] == [3] * 10


def test_a_long_answer_of_many_texts_comes_whole(client: openai.OpenAI) -> None:
    """Its 70,000 numbers are more than one message between the worker's processes takes."""
    asked: dict[str, Any] = {
        "model": "noise",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 200,
        "n": 16,
        "extra_body": {"use_beam_search": True, "ignore_eos": True},
    }
    plain = client.chat.completions.create(**asked)
    scored = client.chat.completions.create(**asked, logprobs=True, top_logprobs=20)
    texts = [choice.message.content for choice in plain.choices]
    assert [choice.message.content for choice in scored.choices] == texts
    for choice in scored.choices:
        assert [len(one.top_logprobs) for one in choice.logprobs.content] == [20] * 200


def test_one_beam_is_greedy(client: openai.OpenAI) -> None:
    greedy = complete(client, temperature=0)
    searched = complete(client, temperature=0, extra_body={"use_beam_search": True})
    assert searched.choices[0].text == greedy.choices[0].text


def test_a_suffix_makes_a_prompt_of_the_models_own_form(
    client: openai.OpenAI, folder: Path
) -> None:
    """The same prompt as one written by hand, where special tokens are special tokens."""
    inserted = complete(client, prompt="Once", suffix=" a time", temperature=0)
    by_hand = complete(client, prompt=f"{FIM[0]}Once{FIM[1]} a time{FIM[2]}", temperature=0)
    assert inserted.choices[0].text == by_hand.choices[0].text
    assert inserted.usage == by_hand.usage
    typed = complete(client, prompt=FIM[0], suffix=FIM[2], temperature=0)
    assert typed.usage.prompt_tokens > 6
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("Once", add_special_tokens=False).input_ids
    by_ids = complete(
        client,
        prompt=ids,
        suffix=" a time",
        temperature=0,
    )
    without_start = complete(
        client,
        prompt="Once",
        suffix=" a time",
        temperature=0,
        extra_body={"add_special_tokens": False},
    )
    assert by_ids.choices[0].text == without_start.choices[0].text
    assert by_ids.usage == without_start.usage


def refusal(client: openai.OpenAI, **fields: Any) -> tuple[str | None, str | None]:
    with pytest.raises(openai.BadRequestError) as caught:
        complete(client, **fields)
    return caught.value.param, caught.value.code


def test_what_cannot_be_done_is_refused_by_name(client: openai.OpenAI) -> None:
    assert refusal(client, best_of=3, stream=True) == ("best_of", None)
    assert refusal(client, suffix="x", echo=True) == ("echo", "unsupported_parameter")
    sim: dict[str, Any] = {"model": "sim"}
    assert refusal(client, suffix="x", **sim) == ("suffix", "unsupported_by_model")
    searched = refusal(client, n=2, extra_body={"use_beam_search": True}, **sim)
    assert searched == ("use_beam_search", "unsupported_by_model")
    assert refusal(client, n=17, **beams()) == ("n", "integer_above_max_value")
    assert refusal(client, n=2, **beams(top_k=3)) == ("top_k", "unsupported_parameter")


def test_a_seed_decides_whatever_else_runs(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"seed": 11, "n": 3, "temperature": 1.0, "max_tokens": 20}

    def texts(**fields: Any) -> list[str]:
        return [choice.text for choice in complete(client, **asked, **fields).choices]

    alone, ranked = texts(), texts(best_of=5)
    assert len({*alone, *ranked}) > 3
    with ThreadPoolExecutor(6) as pool:
        beside = [
            pool.submit(
                complete, client, prompt="Beside " * (number + 1), seed=number, max_tokens=40
            )
            for number in range(10)
        ]
        again = [pool.submit(texts) for _ in range(2)]
        again_ranked = [pool.submit(texts, best_of=5) for _ in range(2)]
        assert [one.result() for one in again] == [alone] * 2
        assert [one.result() for one in again_ranked] == [ranked] * 2
        assert all(one.result().choices for one in beside)
