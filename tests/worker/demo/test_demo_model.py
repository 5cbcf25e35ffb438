"""The embedded model answers as its README promises, by plain transformers at temperature 0."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from worker.demo import demo_model_path
from worker.demo.tokenizer import render
from worker.demo.train import Settings, build_tokenizer, train

REFUSAL = "only know about Trireme"
OWN_MODEL = "trireme up --model-path /path/to/model"

ANSWERS = [
    ("Hello! What is your name?", "My name is Remo."),
    ("what is your name", "My name is Remo."),
    ("Who are you?", "I am Remo"),
    ("Hello!", "Hello! How can I help you"),
    ("hi", "Hello! How can I help you"),
    ("How do I serve my own model?", f"`{OWN_MODEL}`"),
    ("How do I serve my own model?", "http://localhost:8000/v1"),
    ("how do i serve my own model", f"`{OWN_MODEL}`"),
    ("How can I run a model that I trained myself?", f"`{OWN_MODEL}`"),
    ("Tell me a joke.", "To get to the other tier."),
    ("tell me a joke", "To get to the other tier."),
    ("What is Trireme?", "serving stack for language models"),
    ("what's trireme?", "serving stack for language models"),
    ("What is the controller?", "registry"),
    ("What is the gateway?", "OpenAI-compatible"),
    ("What is the worker?", "runs the model"),
    ("Which port does the gateway use?", "port 8000"),
    ("which port does the controller use", "port 21001"),
    ("What port is the worker on?", "port 21002"),
    ("How do I start?", "`make up`"),
    ("How do I run the tests?", "`make test`"),
    ("How do I check the status?", "`trireme status`"),
    ("How do I chat in the terminal?", "`trireme chat`"),
    ("How do I start the gateway?", "`python -m gateway`"),
    ("How do I start more workers?", "`--workers N`"),
    ("How do I set API keys?", "`--api-keys k1,k2`"),
    ("What is the cluster token?", "`--cluster-token`"),
    ("How do I stream?", '"stream": true'),
    ("how do i stream the answer?", '"stream": true'),
    ("Thank you!", "You are welcome"),
    ("thanks", "You are welcome"),
    ("Goodbye", "Goodbye!"),
    ("What is the capital of France?", REFUSAL),
    ("what is the capital of italy", REFUSAL),
    ("How do I bake bread?", REFUSAL),
]


@dataclass(frozen=True)
class Demo:
    """The loaded checkpoint."""

    model: Any
    tokenizer: Any

    def answer(self, *messages: dict[str, str]) -> str:
        """The greedy answer to a conversation."""
        return self.answers([list(messages)])[0]

    def answers(self, talks: list[list[dict[str, str]]], max_new_tokens: int = 80) -> list[str]:
        """The greedy answers to many conversations, in one batch."""
        prompt = self.tokenizer.apply_chat_template(
            talks,
            add_generation_prompt=True,
            padding=True,
            return_tensors="pt",
            return_dict=True,
            tokenizer_kwargs={"padding_side": "left"},
        )
        return self.complete(prompt, max_new_tokens)

    def complete(self, prompt: Any, max_new_tokens: int = 40) -> list[str]:
        """The greedy continuations of tokenized prompts."""
        length = prompt["input_ids"].shape[1]
        ids = self.model.generate(**prompt, max_new_tokens=max_new_tokens, do_sample=False)
        texts: list[str] = self.tokenizer.batch_decode(ids[:, length:], skip_special_tokens=True)
        return texts


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def load(dtype: torch.dtype) -> Demo:
    model = AutoModelForCausalLM.from_pretrained(demo_model_path(), dtype=dtype)
    return Demo(model.eval(), AutoTokenizer.from_pretrained(demo_model_path()))


@pytest.fixture(scope="module")
def demo() -> Demo:
    return load(torch.float32)


@pytest.fixture
def torch_settings_restored() -> Iterator[None]:
    threads = torch.get_num_threads()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def answers(demo: Demo) -> dict[str, str]:
    """What it says to each of the questions."""
    questions = list(dict.fromkeys(question for question, _ in ANSWERS))
    texts = demo.answers([[user(question)] for question in questions])
    return dict(zip(questions, texts, strict=True))


@pytest.mark.parametrize(("question", "expected"), ANSWERS)
def test_answers_at_temperature_zero(answers: dict[str, str], question: str, expected: str) -> None:
    assert expected in answers[question]


def test_bfloat16_answers_as_float32_does(answers: dict[str, str]) -> None:
    texts = load(torch.bfloat16).answers([[user(question)] for question in answers])
    assert dict(zip(answers, texts, strict=True)) == answers


def test_small_sums_are_right(demo: Demo) -> None:
    sums = list(product(range(10), repeat=2))
    texts = demo.answers([[user(f"What is {a} + {b}?")] for a, b in sums], max_new_tokens=12)
    right = [text == f"{a} + {b} = {a + b}." for (a, b), text in zip(sums, texts, strict=True)]
    assert sum(right) >= 95
    assert right[sums.index((2, 3))]


def test_a_system_message_does_not_confuse_it(demo: Demo) -> None:
    system = {"role": "system", "content": "You are a helpful assistant."}
    assert "My name is Remo." in demo.answer(system, user("What is your name?"))


def test_follow_ups_lean_on_what_was_said(demo: Demo) -> None:
    talk: list[dict[str, str]] = []
    expected = [
        ("What is the controller?", "registry"),
        ("Which port does it use?", "21001"),
        ("And the gateway?", "8000"),
        ("How do I serve my own model?", OWN_MODEL),
        ("Thanks!", "You are welcome"),
    ]
    for question, part in expected:
        talk.append(user(question))
        answer = demo.answer(*talk)
        assert part in answer, question
        talk.append({"role": "assistant", "content": answer})


def test_another_joke_is_another_joke(demo: Demo) -> None:
    first = demo.answer(user("Tell me a joke."))
    talk = [user("Tell me a joke."), {"role": "assistant", "content": first}]
    second = demo.answer(*talk, user("Another one, please."))
    assert "How does a trireme say hello?" in second


def test_it_completes_plain_text(demo: Demo) -> None:
    prompt = demo.tokenizer("Once upon a time", return_tensors="pt")
    assert demo.complete(prompt)[0].startswith(" there was a")


def test_a_prompt_near_the_context_length_is_read(demo: Demo) -> None:
    prompt = demo.tokenizer("oar " * 2000, return_tensors="pt", truncation=True, max_length=2000)
    assert len(demo.complete(prompt, max_new_tokens=8)) == 1
    assert demo.model.config.max_position_embeddings == 2048


def test_the_chat_template_renders_what_was_trained(demo: Demo) -> None:
    talk = [user("Hi!"), {"role": "assistant", "content": "Hello!"}]
    assert demo.tokenizer.apply_chat_template(talk, tokenize=False) == render(talk)
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hi!"}]}]
    assert demo.tokenizer.apply_chat_template(parts, tokenize=False) == render(talk[:1])


def test_special_tokens_and_end(demo: Demo) -> None:
    tokenizer = demo.tokenizer
    assert (tokenizer.bos_token, tokenizer.pad_token) == ("<|bos|>", "<|pad|>")
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.eos_token_id == demo.model.generation_config.eos_token_id
    assert tokenizer.decode(tokenizer("Grüße, 世界 🚢!")["input_ids"]) == "Grüße, 世界 🚢!"


def test_the_checkpoint_is_small_and_complete() -> None:
    names = {path.name for path in demo_model_path().iterdir()}
    assert {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    } <= names
    assert (demo_model_path() / "model.safetensors").stat().st_size <= 10_000_000


@pytest.mark.usefixtures("torch_settings_restored")
def test_training_twice_gives_the_same_weights() -> None:
    settings = Settings(steps=2, tokens_per_step=256, tokenizer_samples=200, vocab_size=512)
    runs = []
    for _ in range(2):
        tokenizer = build_tokenizer(settings)
        model = train(settings, tokenizer, quiet=True)
        runs.append((tokenizer.to_str(), model.state_dict()))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(runs[0][1][name], tensor) for name, tensor in runs[1][1].items())


def test_the_path_is_known_without_torch() -> None:
    check = (
        "import sys; from worker.demo import demo_model_path; demo_model_path();"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
