"""/tokenize and /detokenize of the embedded model, beside its own tokenizer."""

from __future__ import annotations

from typing import Any

import pytest
import transformers as hf

from tests.stack.processes import Stack
from worker.demo import demo_model_path

MODEL = "trireme-demo"
MESSAGES: list[Any] = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "What is a lease?"},
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return hf.AutoTokenizer.from_pretrained(demo_model_path())


def ask(stack: Stack, path: str, **body: Any) -> Any:
    answer = stack.post(path, {"model": MODEL, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("special", [True, False])
def test_a_prompt(real_stack: Stack, tokenizer: Any, special: bool) -> None:
    found = ask(real_stack, "/tokenize", prompt="What is a lease?", add_special_tokens=special)
    ids = tokenizer("What is a lease?", add_special_tokens=special).input_ids
    assert found == {"count": len(ids), "max_model_len": 2048, "tokens": ids, "token_strs": None}


def test_tokens_are_spelled_as_the_vocabulary_has_them(real_stack: Stack, tokenizer: Any) -> None:
    found = ask(real_stack, "/tokenize", prompt="What is a lease?", return_token_strs=True)
    assert found["token_strs"] == tokenizer.convert_ids_to_tokens(found["tokens"])


def test_messages_have_the_tokens_of_a_chat_completion(real_stack: Stack, tokenizer: Any) -> None:
    found = ask(real_stack, "/tokenize", messages=MESSAGES)
    rendered = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert found["tokens"] == tokenizer(rendered, add_special_tokens=False).input_ids
    chat = {"messages": MESSAGES, "max_tokens": 1}
    used = ask(real_stack, "/v1/chat/completions", **chat)["usage"]["prompt_tokens"]
    assert found["count"] == used


def test_messages_without_and_with_an_open_end(real_stack: Stack, tokenizer: Any) -> None:
    closed = ask(real_stack, "/tokenize", messages=MESSAGES, add_generation_prompt=False)
    rendered = tokenizer.apply_chat_template(MESSAGES, tokenize=False)
    assert closed["tokens"] == tokenizer(rendered, add_special_tokens=False).input_ids
    begun = [*MESSAGES, {"role": "assistant", "content": "A lease is"}]
    open_end = ask(real_stack, "/tokenize", messages=begun, continue_final_message=True)
    text = ask(real_stack, "/detokenize", tokens=open_end["tokens"])["prompt"]
    assert text.endswith("A lease is")


def test_detokenize_gives_the_text_back(real_stack: Stack) -> None:
    text = "Grüße, <|im_end|> 数字!"
    ids = ask(real_stack, "/tokenize", prompt=text, add_special_tokens=False)["tokens"]
    assert ask(real_stack, "/detokenize", tokens=ids) == {"prompt": text}
    assert ask(real_stack, "/detokenize", tokens=[]) == {"prompt": ""}


def test_an_id_outside_the_vocabulary_is_named(real_stack: Stack) -> None:
    answer = real_stack.post("/detokenize", {"model": MODEL, "tokens": [1, 10**9]})
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert (error["code"], error["param"]) == ("invalid_value", "tokens")
    assert "1000000000" in error["message"]
