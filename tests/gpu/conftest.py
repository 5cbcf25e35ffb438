"""Small random models for one GPU. Nothing here runs without one.

On a machine that has only torch, transformers and pytest:
`python -m pytest -c /dev/null --rootdir . --import-mode importlib tests/gpu`
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

_SHAPE: dict[str, Any] = {
    "vocab_size": 2048,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def _configs() -> dict[str, Any]:
    import transformers as hf

    return {
        "llama": hf.LlamaConfig(**_SHAPE),
        "single": hf.LlamaConfig(**{**_SHAPE, "num_key_value_heads": 8}),
        "qwen3": hf.Qwen3Config(**_SHAPE, head_dim=128),
        "mistral": hf.MistralConfig(**_SHAPE, sliding_window=300),
        "gemma2": hf.Gemma2Config(**_SHAPE, head_dim=64, sliding_window=128),
    }


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`checkpoint("llama")` is a folder with random weights in float32."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            import torch
            from transformers import AutoModelForCausalLM

            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(_configs()[name], dtype=torch.float32)
            with torch.no_grad():
                for weight in model.parameters():
                    if weight.dim() > 1:
                        weight.normal_(0, 0.06)  # the default scale repeats one token for ever
            made[name] = tmp_path_factory.mktemp("checkpoints") / name
            model.save_pretrained(made[name])
        return made[name]

    return make
