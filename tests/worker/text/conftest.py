"""Tiny tokenizers, trained on the spot."""

from __future__ import annotations

import json
from typing import Any

import pytest

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
)
CORPUS = [
    "hello world, this is a tiny corpus",
    "naïve café ☕ and 数字 123",
    "user assistant system",
]


def _pretrained(tokenizer: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|bos|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHAT_TEMPLATE,
    )


@pytest.fixture(scope="session")
def byte_level() -> Any:
    """A byte-level BPE whose post-processor adds a BOS."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|bos|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 5, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", 0)]
    )
    return _pretrained(tokenizer)


@pytest.fixture(scope="session")
def sentence_piece() -> Any:
    """A BPE in SentencePiece's manner, as Llama 2 has it: words carry their space before them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<unk>", "<|bos|>", "<|im_start|>", "<|im_end|>"]
        + [f"<0x{byte:02X}>" for byte in range(256)],
        initial_alphabet=["▁", "\n"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS[:1] * 5 + CORPUS[2:] * 5, trainer)
    fields = json.loads(tokenizer.to_str())
    # byte pieces are vocabulary, not added tokens
    fields["added_tokens"] = [
        token for token in fields["added_tokens"] if not token["content"].startswith("<0x")
    ]
    return _pretrained(Tokenizer.from_str(json.dumps(fields)))
