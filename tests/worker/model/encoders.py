"""Tiny random encoders with tokenizers that are trained on the spot, as folders of a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

CORPUS = ["the worker embeds a text", "a gateway asks for scores of pairs", "héllo wörld 123"]
TEXTS = [
    "a worker",
    "the gateway asks",
    "one two three four five six seven eight nine ten",
    "héllo wörld",
    "x",
]
PAIRS = [("a worker", "embeds a text"), ("who asks", "the gateway asks for many long scores"),
         ("x", "y")]  # fmt: skip
_VOCAB = 330
_SIZES: dict[str, Any] = {
    "vocab_size": _VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_labels": 1,
}


@dataclass(frozen=True)
class Shape:
    """One architecture: its configuration, and how its tokenizer puts texts together.

    Attributes:
        special: the special tokens, in the order of their ids.
        tells_apart: whether the model is told which tokens are of the second text.
    """

    config: Callable[[], Any]
    special: tuple[str, ...]
    single: str
    pair: str
    tells_apart: bool = False


_ROBERTA = ("<s>", "<pad>", "</s>", "<unk>")
_ROBERTA_IDS = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
SHAPES = {
    "bert": Shape(
        lambda: hf.BertConfig(**_SIZES, max_position_embeddings=64, pad_token_id=0),
        ("[PAD]", "[UNK]", "[CLS]", "[SEP]"),
        "[CLS] $A [SEP]",
        "[CLS] $A [SEP] $B:1 [SEP]:1",
        tells_apart=True,
    ),
    "roberta": Shape(
        lambda: hf.RobertaConfig(
            **_SIZES, **_ROBERTA_IDS, max_position_embeddings=66, type_vocab_size=1
        ),
        _ROBERTA,
        "<s> $A </s>",
        "<s> $A </s> </s> $B </s>",
    ),
    "xlm-roberta": Shape(
        lambda: hf.XLMRobertaConfig(
            **_SIZES, **_ROBERTA_IDS, max_position_embeddings=66, type_vocab_size=1
        ),
        _ROBERTA,
        "<s> $A </s>",
        "<s> $A </s> </s> $B </s>",
    ),
    "modernbert": Shape(
        lambda: hf.ModernBertConfig(
            **_SIZES,
            max_position_embeddings=64,
            local_attention=8,
            pad_token_id=0,
            cls_token_id=2,
            sep_token_id=3,
            bos_token_id=2,
            eos_token_id=3,
        ),
        ("[PAD]", "[UNK]", "[CLS]", "[SEP]"),
        "[CLS] $A [SEP]",
        "[CLS] $A [SEP] $B [SEP]",
    ),
    "qwen3": Shape(
        lambda: hf.Qwen3Config(
            **_SIZES,
            max_position_embeddings=64,
            num_key_value_heads=2,
            head_dim=16,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        ),
        ("<|endoftext|>",),
        "$A <|endoftext|>",
        "$A $B <|endoftext|>",
    ),
}
ENCODERS = ["bert", "roberta", "xlm-roberta", "modernbert"]


def save(folder: Path, name: str, auto: Any = hf.AutoModel, **options: Any) -> Path:
    """A checkpoint of a shape.

    Args:
        auto: the class that makes the model. options: change its configuration.
    """
    config = SHAPES[name].config()
    config.update(options)
    torch.manual_seed(3)
    model = auto.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.2)  # so that different texts have quite different vectors
    model.save_pretrained(folder)
    tokenizer_of(name).save_pretrained(folder)
    return folder


def add_sentence_files(
    folder: Path,
    pooling: str,
    max_seq_length: int | None = None,
    prompt: str | None = None,
    modules: tuple[str, ...] = ("Transformer", "Pooling", "Normalize"),
) -> None:
    """What sentence-transformers writes beside a model; `pooling` is a name of its own."""

    def write(name: str, value: Any) -> None:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(value))

    kinds = [f"sentence_transformers.models.{kind}" for kind in modules]
    write(
        "modules.json",
        [
            {"idx": i, "name": str(i), "path": f"{i}_{modules[i]}" if i else "", "type": kind}
            for i, kind in enumerate(kinds)
        ],
    )
    write(
        "1_Pooling/config.json", {"word_embedding_dimension": 32, f"pooling_mode_{pooling}": True}
    )
    write("sentence_bert_config.json", {"max_seq_length": max_seq_length})
    prompts = {"prompts": {"own": prompt}, "default_prompt_name": "own"} if prompt else {}
    write("config_sentence_transformers.json", prompts)


def tokenizer_of(name: str) -> Any:
    """The tokenizer of a shape, as transformers loads it."""
    shape = SHAPES[name]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCAB - 10,
        special_tokens=list(shape.special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 5, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=shape.single,
        pair=shape.pair,
        special_tokens=[(token, i) for i, token in enumerate(shape.special)],
    )
    names = ["input_ids", "attention_mask"]
    pad = next(token for token in shape.special if "pad" in token.lower() or "end" in token)
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        model_input_names=[*names, "token_type_ids"] if shape.tells_apart else names,
        model_max_length=64,
    )
