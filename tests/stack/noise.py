"""A tiny model of random weights: what it writes is noise, but for what a grammar holds it to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import transformers as hf

from worker.demo import demo_model_path


def save_noise(
    folder: Path,
    chat_template: str | None = None,
    *,
    control_tokens: Sequence[str] = (),
    spread: float | None = None,
) -> None:
    """The model's files, with the embedded model's tokenizer.

    Args:
        chat_template: None keeps the embedded model's.
        control_tokens: special tokens beside those of the tokenizer.
        spread: standard deviation of the weights; None leaves it to transformers.
    """
    tokenizer = hf.AutoTokenizer.from_pretrained(demo_model_path())
    if control_tokens:
        tokenizer.add_special_tokens({"additional_special_tokens": list(control_tokens)})
    config = hf.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(config)
    if spread is not None:
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() > 1:
                    weight.normal_(0, spread)
    model.save_pretrained(folder)
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)
