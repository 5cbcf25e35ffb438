"""A tiny model with code of its own, in which single tokens do what bugs and devices do: a step
that never ends, one that raises, one that finds no memory. A worker runs it like any other model
with `--trust-remote-code`, so the engine itself needs no switch for such tests."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers as hf

from worker.demo import demo_model_path

HANG, RAISE, NO_MEMORY, SLOW = 200, 201, 202, 203
"""Token ids. `NO_MEMORY` only stands in the way of steps of several tokens, `SLOW` makes each
layer of the step take 0.8 s."""
LAYERS = 6

CODE = f"""
import time
import torch
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer


class OddEmbedding(torch.nn.Embedding):
    def forward(self, ids):
        found = set(ids.flatten().tolist())
        while {HANG} in found:
            time.sleep(1)
        if {RAISE} in found:
            raise KeyError("a token that nobody expected")
        if {NO_MEMORY} in found and ids.numel() > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8.00 GiB.")
        OddLayer.pause_s = 0.8 if {SLOW} in found else 0.0
        return super().forward(ids)


class OddLayer(LlamaDecoderLayer):
    pause_s = 0.0

    def forward(self, *args, **kwargs):
        time.sleep(OddLayer.pause_s)
        return super().forward(*args, **kwargs)


class OddForCausalLM(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        self.model.embed_tokens = OddEmbedding(config.vocab_size, config.hidden_size)
        self.model.layers = torch.nn.ModuleList(
            OddLayer(config, at) for at in range(config.num_hidden_layers)
        )
        self.post_init()
"""


def make(folder: Path) -> None:
    """Write the model, with the embedded model's tokenizer, in float32."""
    tokenizer = hf.AutoTokenizer.from_pretrained(demo_model_path())
    config = hf.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.3,  # so large that a token depends on all before it
    )
    torch.manual_seed(0)
    model = hf.LlamaForCausalLM(config)
    config.auto_map = {"AutoModelForCausalLM": "modeling_odd.OddForCausalLM"}
    config.architectures = ["OddForCausalLM"]
    model.save_pretrained(folder)
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "modeling_odd.py").write_text(CODE)
