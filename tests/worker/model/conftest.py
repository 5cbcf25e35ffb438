"""Tiny random checkpoints of the architectures that are served, made once a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from worker.model.kernels import load_kernels
from worker.model.linear_native import NativeProducts
from worker.model.pick_native import NativePick

VOCAB = 384
_LLAMA: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GPT: dict[str, Any] = {key: value for key, value in _LLAMA.items() if key != "num_key_value_heads"}
_GEMMA: dict[str, Any] = {
    **_LLAMA,
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "sliding_window": 12,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
_MOE: dict[str, Any] = {
    **_LLAMA,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 48,
}
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: hf.LlamaConfig(**_LLAMA),
    "qwen2": lambda: hf.Qwen2Config(**_LLAMA),
    "qwen3": lambda: hf.Qwen3Config(**_LLAMA, head_dim=16),
    "mistral": lambda: hf.MistralConfig(**_LLAMA, sliding_window=12),
    "gemma2": lambda: hf.Gemma2Config(**_GEMMA),
    "gemma3": lambda: hf.Gemma3TextConfig(**_GEMMA),
    "phi3": lambda: hf.Phi3Config(**_LLAMA, sliding_window=20),
    "gpt2": lambda: hf.GPT2Config(
        vocab_size=VOCAB,
        n_embd=64,
        n_layer=3,
        n_head=4,
        n_positions=512,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "opt": lambda: hf.OPTConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        ffn_dim=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=512,
        word_embed_proj_dim=48,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    ),
    "gpt_neox": lambda: hf.GPTNeoXConfig(**_GPT),
    "olmo2": lambda: hf.Olmo2Config(**_LLAMA),
    "mixtral": lambda: hf.MixtralConfig(**_LLAMA, num_local_experts=4, sliding_window=None),
    "qwen2_moe": lambda: hf.Qwen2MoeConfig(**_MOE),
    # its router reads the weight of a linear layer
    "longcat": lambda: hf.LongcatFlashConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        num_layers=1,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        ffn_hidden_size=128,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_nope_head_dim=16,
        qk_rope_head_dim=16,
        head_dim=16,
        v_head_dim=16,
        moe_topk=2,
        n_routed_experts=4,
        zero_expert_num=2,
        expert_ffn_hidden_size=32,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    ),
    "mamba": lambda: hf.MambaConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        num_hidden_layers=2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    ),
    "bert": lambda: hf.BertConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
    ),
    "t5": lambda: hf.T5Config(
        vocab_size=VOCAB,
        d_model=64,
        d_kv=16,
        d_ff=96,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        eos_token_id=2,
        pad_token_id=0,
    ),
}
AUTO = {"t5": hf.AutoModelForSeq2SeqLM, "bert": hf.AutoModel}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`checkpoint("llama")` is a folder with random float32 weights of that architecture."""
    torch.set_num_threads(1)
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            config = CONFIGS[name]()
            auto = AUTO.get(name, hf.AutoModelForCausalLM)
            torch.manual_seed(0)
            model = auto.from_config(config, dtype=torch.float32)
            with torch.no_grad():
                for weight in model.parameters():
                    if weight.dim() > 1:
                        weight.normal_(0, 0.08)  # the default scale repeats one token for ever
            made[name] = tmp_path_factory.mktemp("checkpoints") / name
            model.save_pretrained(made[name])
        return made[name]

    return make


@pytest.fixture(scope="session")
def native_products() -> NativeProducts:
    """The engine's own matrix products."""
    kernels = load_kernels(lambda _text: None)
    found = None if kernels is None else kernels[torch.bfloat16].products
    if found is None:
        pytest.skip("this processor or compiler has no such products")
    return found


@pytest.fixture(scope="session")
def native_pick() -> NativePick:
    """The engine's own way to choose tokens."""
    kernels = load_kernels(lambda _text: None)
    if kernels is None:
        pytest.skip("there is no compiler for the kernels")
    return NativePick(kernels[torch.float32].library)
