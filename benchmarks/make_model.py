"""Makes a Qwen2-shaped checkpoint with random weights, for measuring: nobody must download one.

The answers are nonsense, the work is that of a trained model of the same shape. The tokenizer is
trained on the spot on made-up words. The same size gives the same files each time. Run it with
`python -m benchmarks.make_model SIZE FOLDER`.
"""

from __future__ import annotations

import random
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Shape:
    """A Qwen2 model's shape; `head_dim` is 64 throughout."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    context: int = 32768


SIZES: dict[str, Shape] = {
    "tiny": Shape(128, 256, 2, 2, 1, 2048, 4096),
    "25m": Shape(384, 1024, 8, 6, 2, 16384),
    "100m": Shape(640, 2048, 14, 10, 2, 32768),
    "400m": Shape(896, 4864, 24, 14, 2, 49152),
}
"""Name -> shape. 400m is Qwen2-0.5B's own shape with a third of its vocabulary."""


def make_model(size: str, parent: Path, say: Callable[[str], object] = print) -> Path:
    """Make the checkpoint `parent`/bench-`size` unless it is there; returns its folder.

    Raises:
        ValueError: when there is no such size.
    """
    if size not in SIZES:
        raise ValueError(f"no size {size!r}; there are {', '.join(SIZES)}")
    folder = parent / f"bench-{size}"
    if folder.is_dir():
        return folder
    say(f"making the model {folder} (once)")
    parent.mkdir(parents=True, exist_ok=True)
    partial = parent / f".bench-{size}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    _write_tokenizer(SIZES[size], partial)
    _write_weights(SIZES[size], partial)
    partial.rename(folder)
    return folder


def _made_up_words(count: int) -> list[str]:
    """Words of two to four syllables, all different, most frequent first."""
    rng = random.Random(0)
    onsets = "b br c ch d dr f fl g gr h j k l m n p pl qu r s sh st t th tr v w z".split()
    vowels = "a e i o u ai ea ou".split()
    codas = ["", "", "n", "r", "s", "t", "l", "ck", "m"]
    words: dict[str, None] = {}
    while len(words) < count:
        syllables = rng.choice((2, 2, 3, 3, 4))
        words["".join(map(rng.choice, (onsets, vowels, codas) * syllables))] = None
    return list(words)


def _write_tokenizer(shape: Shape, folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from benchmarks.client import WORDS

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=shape.vocab,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # the frequent words come often enough to become one token each, as in a trained tokenizer
    made_up = [f" {word}" for word in _made_up_words(2 * shape.vocab)]
    frequent = " ".join(["", *WORDS, "system", "user", "assistant"])
    tokenizer.train_from_iterator([frequent] * 50 + made_up * 2, trainer)
    assert tokenizer.get_vocab_size() == shape.vocab, tokenizer.get_vocab_size()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=shape.context,
    ).save_pretrained(folder)


def _write_weights(shape: Shape, folder: Path) -> None:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.context,
        tie_word_embeddings=True,
        bos_token_id=0,
        pad_token_id=0,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in SIZES:
        sys.exit(f"usage: python -m benchmarks.make_model {{{'|'.join(SIZES)}}} FOLDER")
    make_model(sys.argv[1], Path(sys.argv[2]))
