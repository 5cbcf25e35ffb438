"""The stack under test: three processes of ours, two of FastChat's, one tiny checkpoint."""

from __future__ import annotations

import functools
import json
import os
import shutil
import string
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.servers import Launcher, Server, Stack, answers, free_port, models_of

JINJA = """\
{{- bos_token }}
{%- if messages[0].role != 'system' %}{{ '<system>be polite</s>' }}{% endif %}
{%- for m in messages %}{{ '<' + m.role + '>' + m.content + '</s>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"""
"""A template that FastChat has no name for. It writes the BOS that the tokenizer adds elsewhere."""


@pytest.fixture(scope="session")
def fastchat_python() -> str:
    """The python of FastChat's virtual environment; without one the tests are skipped."""
    python = os.environ.get("TRIREME_FASTCHAT_PYTHON")
    if not python:
        pytest.skip("TRIREME_FASTCHAT_PYTHON names no python with fschat 0.2.36")
    return python


@pytest.fixture(scope="session")
def launcher(fastchat_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """What starts the servers of a session, and ends them."""
    launcher = Launcher(fastchat_python, tmp_path_factory.mktemp("servers"))
    try:
        yield launcher
    finally:
        launcher.stop()


@pytest.fixture(scope="session")
def stack(launcher: Launcher, checkpoint: Path) -> Stack:
    """The whole stack, ready: both gateways list both models."""
    controller = launcher.ours("controller")
    controller.wait_until(lambda: answers(controller, "/test_connection"), "answering")
    joins = ("--controller-address", controller.url)
    model = ("--model-path", str(checkpoint), "--device", "cpu")
    our_gateway = launcher.ours("gateway", *joins)
    their_gateway = launcher.fastchat("openai_api_server", *joins)
    their_worker = _fastchat_worker(launcher, controller, checkpoint, Stack.their_model)
    our_worker = launcher.ours(
        "worker",
        *(*joins, *model, "--model-names", Stack.our_model),
        *("--conv-template", "vicuna_v1.1"),
    )
    stack = Stack(controller, our_worker, their_worker, our_gateway, their_gateway)
    both = {stack.our_model, stack.their_model}
    for worker in (their_worker, our_worker):
        worker.wait_until(functools.partial(answers, worker, "/model_details"), "answering")
    for gateway in (our_gateway, their_gateway):
        gateway.wait_until(functools.partial(_lists, gateway, both), f"serving {both}")
    return stack


def _fastchat_worker(launcher: Launcher, controller: Server, checkpoint: Path, name: str) -> Server:
    port = free_port()
    return launcher.fastchat(
        "model_worker",
        *("--controller-address", controller.url, "--worker-address", f"http://127.0.0.1:{port}"),
        *("--model-path", str(checkpoint), "--device", "cpu", "--model-names", name),
        port=port,
    )


@pytest.fixture
def mortal(stack: Stack, launcher: Launcher, checkpoint: Path) -> tuple[Server, str]:
    """One more worker of FastChat's, for a test to kill, and its model."""
    name = "vicuna-mortal"
    worker = _fastchat_worker(launcher, stack.controller, checkpoint, name)
    worker.wait_until(functools.partial(_lists, stack.our_gateway, {name}), "served")
    return worker, name


@pytest.fixture(scope="session")
def jinja_model(stack: Stack, launcher: Launcher, checkpoint: Path) -> str:
    """A model of our worker that has a Jinja template and no FastChat one; served by both."""
    folder = checkpoint.with_name("jinja-tiny")
    shutil.copytree(checkpoint, folder)
    (folder / "chat_template.jinja").write_text(JINJA)
    joins = ("--controller-address", stack.controller.url)
    worker = launcher.ours("worker", *joins, "--model-path", str(folder), "--device", "cpu")
    worker.wait_until(functools.partial(answers, worker, "/model_details"), "answering")
    for gateway in (stack.our_gateway, stack.their_gateway):
        gateway.wait_until(functools.partial(_lists, gateway, {folder.name}), "serving it")
    return folder.name


def _lists(gateway: Server, models: set[str]) -> bool:
    return models_of(gateway) >= models


@pytest.fixture(scope="session")
def checkpoint(fastchat_python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with a tokenizer; FastChat takes the vicuna template from its name."""
    folder = tmp_path_factory.mktemp("models") / "vicuna-tiny"
    folder.mkdir()
    vocabulary = _write_tokenizer(folder)
    _write_model(folder, vocabulary)
    return folder


def _write_tokenizer(folder: Path) -> int:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    words = "a the user assistant human answers question detailed polite helpful USER ASSISTANT"
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    )
    core.train_from_iterator([string.printable, words, words], trainer)
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.save_pretrained(folder)
    config = folder / "tokenizer_config.json"
    fields = json.loads(config.read_text())
    # What transformers 5 writes there is a class that FastChat's transformers 4 does not have.
    fields["tokenizer_class"] = "PreTrainedTokenizerFast"
    config.write_text(json.dumps(fields))
    return len(tokenizer)


def _write_model(folder: Path, vocabulary: int) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        initializer_range=0.4,  # far-apart logits: no ties for two engines to break differently
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).to(torch.float32).save_pretrained(folder)
