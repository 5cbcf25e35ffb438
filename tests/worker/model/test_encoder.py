"""Encoders give what plain transformers code gives, alone and in padded batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from tests.worker.model.encoders import (
    ENCODERS,
    PAIRS,
    TEXTS,
    add_sentence_files,
    save,
)
from worker.embedding import finished
from worker.engine.config import EngineConfig
from worker.engine.protocol import ModelLoadError, Pair
from worker.model.build import Built, build
from worker.text.prompt import load_text_model


def built(folder: Path, **options: Any) -> Built:
    config = EngineConfig(model_path=str(folder), dtype="float32", device="cpu", **options)
    return build(config, lambda _text: None, num_threads=1)


def token_ids(folder: Path, texts: list[str]) -> list[list[int]]:
    """As the worker makes them of texts."""
    text = _text_model(folder)
    return [text.encode_prompt(text.sentence.prepared(one)).ids for one in texts]


def _text_model(folder: Path) -> Any:
    return load_text_model(
        str(folder), revision=None, trust_remote_code=False, conv_template=None, chat_template=None
    )


def unit(made: Built, inputs: list[list[int]]) -> torch.Tensor:
    """What the API answers: vectors of length 1."""
    return torch.tensor(finished([[one] for one in inputs], made.embed(inputs), None))


@torch.inference_mode()
def reference(folder: Path, texts: list[str], pooling: str) -> torch.Tensor:
    """The same by transformers alone, one text at a time."""
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    model = hf.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for text in texts:
        states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        vector = {
            "mean": states.mean(0),
            "cls": states[0],
            "last": states[-1],
            "max": states.max(0).values,
        }[pooling]
        found.append(torch.nn.functional.normalize(vector, dim=0))
    return torch.stack(found)


def assert_equal(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found - expected).abs().max() < 1e-5
    assert (expected[0] - expected[1]).abs().max() > 0.05  # the texts differ in it


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize(("mode", "pooling"), [("mean_tokens", "mean"), ("cls_token", "cls")])
def test_vectors_equal_transformers_alone_and_batched(
    tmp_path: Path, name: str, mode: str, pooling: str
) -> None:
    add_sentence_files(save(tmp_path, name), mode)
    made = built(tmp_path)
    assert (made.info.engine, made.info.generates, made.info.embeds) == ("encoder", False, True)
    inputs = token_ids(tmp_path, TEXTS)
    expected = reference(tmp_path, TEXTS, pooling)
    assert_equal(unit(made, inputs), expected)
    alone = [unit(made, [one])[0] for one in inputs]
    assert_equal(torch.stack(alone), expected)


@pytest.mark.parametrize("engine", ["paged", "generate"])
def test_a_causal_model_takes_the_last_token_where_its_files_say_so(
    tmp_path: Path, engine: str
) -> None:
    """As Qwen3-Embedding does: the tokenizer ends each text by a token of its own."""
    add_sentence_files(save(tmp_path, "qwen3", hf.AutoModelForCausalLM), "lasttoken")
    made = built(tmp_path, engine=engine)
    assert (made.info.engine, made.info.generates) == (engine, True)
    inputs = token_ids(tmp_path, TEXTS)
    assert all(ids[-1] == 0 for ids in inputs)
    assert_equal(unit(made, inputs), reference(tmp_path, TEXTS, "last"))


def test_a_causal_base_model_runs_as_an_encoder_with_causal_attention(tmp_path: Path) -> None:
    add_sentence_files(save(tmp_path, "qwen3"), "lasttoken")
    made = built(tmp_path)
    assert made.info.engine == "encoder"
    assert_equal(unit(made, token_ids(tmp_path, TEXTS)), reference(tmp_path, TEXTS, "last"))


@pytest.mark.parametrize("pooling", ["mean", "cls", "last", "max"])
def test_the_flag_decides_against_the_files(tmp_path: Path, pooling: str) -> None:
    add_sentence_files(save(tmp_path, "bert"), "cls_token")
    found = unit(built(tmp_path, pooling=pooling), token_ids(tmp_path, TEXTS))
    assert_equal(found, reference(tmp_path, TEXTS, pooling))


def test_the_default_prompt_stands_before_each_text(tmp_path: Path) -> None:
    add_sentence_files(save(tmp_path, "bert"), "mean_tokens", prompt="query: ")
    prompted = [f"query: {text}" for text in TEXTS]
    found = unit(built(tmp_path), token_ids(tmp_path, TEXTS))
    assert_equal(found, reference(tmp_path, prompted, "mean"))


@pytest.mark.parametrize(
    ("name", "stated", "asked", "context"),
    [
        ("bert", None, None, 64),
        ("bert", 20, None, 20),
        ("bert", 20, 40, 40),
        ("bert", 512, None, 64),
        ("roberta", None, None, 64),
        ("xlm-roberta", 512, None, 64),
        ("modernbert", 30, None, 30),
    ],
)
def test_the_context_is_what_the_positions_and_the_files_allow(
    tmp_path: Path, name: str, stated: int | None, asked: int | None, context: int
) -> None:
    add_sentence_files(save(tmp_path, name), "mean_tokens", max_seq_length=stated)
    made = built(tmp_path, max_model_len=asked)
    assert made.info.context_length == context
    assert len(made.embed([[5] * context])[0]) == 32


def test_more_context_than_a_roberta_has_positions_is_refused(tmp_path: Path) -> None:
    save(tmp_path, "roberta")
    with pytest.raises(ModelLoadError, match="--max-model-len 65 is above the model's own 64"):
        built(tmp_path, max_model_len=65)


# ---- pairs --------------------------------------------------------------------------------------


def pairs_of(folder: Path) -> list[Pair]:
    tokenizer = _text_model(folder).tokenizer
    return [Pair(*tokenizer.encode_pair(*texts)) for texts in PAIRS]


@torch.inference_mode()
def logits(folder: Path) -> torch.Tensor:
    """A logit a pair by transformers alone, one pair at a time."""
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    auto = hf.AutoModelForSequenceClassification
    model = auto.from_pretrained(folder, dtype=torch.float32).eval()
    found = [model(**tokenizer(*texts, return_tensors="pt")).logits[0, 0] for texts in PAIRS]
    return torch.stack(found)


@pytest.mark.parametrize("name", [*ENCODERS, "qwen3"])
def test_scores_equal_transformers_alone_and_batched(tmp_path: Path, name: str) -> None:
    made = built(save(tmp_path, name, hf.AutoModelForSequenceClassification))
    assert (made.info.scores, made.info.embeds, made.info.generates) == (True, False, False)
    pairs, expected = pairs_of(tmp_path), logits(tmp_path).sigmoid()
    found = torch.tensor(made.embed(pairs))[:, 0]
    assert (found - expected).abs().max() < 1e-5
    alone = torch.tensor([made.embed([pair])[0][0] for pair in pairs])
    assert (alone - expected).abs().max() < 1e-5
    assert (expected[0] - expected[1]).abs() > 1e-3


def test_a_model_that_cannot_tell_padding_scores_one_pair_at_a_time(tmp_path: Path) -> None:
    auto = hf.AutoModelForSequenceClassification
    made = built(save(tmp_path, "qwen3", auto, pad_token_id=None))
    found = torch.tensor(made.embed(pairs_of(tmp_path)))[:, 0]
    assert (found - logits(tmp_path).sigmoid()).abs().max() < 1e-5


@pytest.mark.parametrize(
    "named",
    [
        {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"},
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}},
    ],
)
def test_a_configuration_may_ask_for_the_logit_itself(
    tmp_path: Path, named: dict[str, Any]
) -> None:
    made = built(save(tmp_path, "bert", hf.AutoModelForSequenceClassification, **named))
    found = torch.tensor(made.embed(pairs_of(tmp_path)))[:, 0]
    assert (found - logits(tmp_path)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("name", "auto", "config", "options", "reason"),
    [
        (
            "bert",
            hf.AutoModelForSequenceClassification,
            {"num_labels": 3},
            {},
            "a classifier with 3 labels cannot be served",
        ),
        (
            "bert",
            hf.AutoModelForSequenceClassification,
            {"sbert_ce_default_activation_function": "torch.nn.Tanh"},
            {},
            "the activation torch.nn.Tanh",
        ),
        (
            "bert",
            hf.AutoModelForSequenceClassification,
            {},
            {"pooling": "cls"},
            "--pooling cls: this model gives no embeddings",
        ),
        ("bert", hf.AutoModel, {}, {"tensor_parallel_size": 2}, "--tensor-parallel-size 2"),
    ],
)
def test_what_cannot_be_served_is_said_at_the_start(
    tmp_path: Path,
    name: str,
    auto: Any,
    config: dict[str, Any],
    options: dict[str, Any],
    reason: str,
) -> None:
    from worker.model.loader import load_model

    save(tmp_path, name, auto, **config)
    with pytest.raises(ModelLoadError, match=reason):
        load_model(EngineConfig(model_path=str(tmp_path), **options), lambda _text: None)


def test_a_classifier_with_pooling_files_embeds(tmp_path: Path) -> None:
    add_sentence_files(save(tmp_path, "bert", hf.AutoModelForSequenceClassification), "mean_tokens")
    made = built(tmp_path)
    assert made.info.embeds
    assert_equal(unit(made, token_ids(tmp_path, TEXTS)), reference(tmp_path, TEXTS, "mean"))


def small(config: Any) -> Any:
    """A configuration with layers of few numbers."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    return config(**sizes, intermediate_size=32)


def test_a_model_without_a_vocabulary_is_refused(tmp_path: Path) -> None:
    hf.AutoModel.from_config(small(hf.ViTConfig)).save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match="a model of type 'vit' takes no texts"):
        built(tmp_path)


def test_a_model_that_wants_more_than_texts_is_refused(tmp_path: Path) -> None:
    parts = (small(hf.CLIPTextConfig).to_dict(), small(hf.CLIPVisionConfig).to_dict())
    config = hf.CLIPConfig(text_config=parts[0], vision_config=parts[1])
    hf.AutoModel.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match="CLIPModel does not run on texts alone"):
        built(tmp_path)
