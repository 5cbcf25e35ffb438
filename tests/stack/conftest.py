"""A stack with real models, shared by the tests that only talk to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers as hf

from tests.stack.processes import Stack, running
from worker.demo import demo_model_path

STARTS_TIMEOUT_S = 300
"""Of a test whose fixtures may have to start real processes: on a busy machine a model takes
minutes to become ready (`Tier.wait_ready`), and its time is the first test's."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test here the time that its processes may take to start."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent) and not item.get_closest_marker(
            "timeout"
        ):
            item.add_marker(pytest.mark.timeout(STARTS_TIMEOUT_S))


@pytest.fixture(scope="session")
def t5_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder-decoder with the embedded model's tokenizer, without a chat template."""
    folder = tmp_path_factory.mktemp("models") / "tiny-t5"
    tokenizer = hf.AutoTokenizer.from_pretrained(demo_model_path())
    tokenizer.chat_template = None
    config = hf.T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=tokenizer.pad_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    hf.AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def real_stack(tmp_path_factory: pytest.TempPathFactory, t5_path: Path) -> Iterator[Stack]:
    """The embedded model on the paged engine and a tiny T5 on the plain one."""
    with running(tmp_path_factory.mktemp("stack")) as stack:
        stack.add_worker("--dtype", "float32")
        stack.add_worker("--model-path", str(t5_path), "--embed-in-truncate")
        stack.wait_serving()
        yield stack
