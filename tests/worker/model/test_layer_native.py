"""A layer in one call computes what its parts compute, to the last bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config
from transformers.models.auto import AutoModelForCausalLM

from worker.model.attention import PagedAttention, Span
from worker.model.attention_native import NativeAttention
from worker.model.fused_layer import FusedModel, LayerOps, NativeOps, fuse_layers
from worker.model.kernels import KernelSet, load_kernels
from worker.model.runner import ModelRunner

SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "qwen2, biases": Qwen2Config(**SIZES),
    "qwen3, norms of heads": Qwen3Config(**SIZES, head_dim=64),
    "mistral, a window": MistralConfig(**SIZES, head_dim=64, sliding_window=11),
    "qwen2, a window in some layers": Qwen2Config(
        **SIZES, use_sliding_window=True, sliding_window=3, max_window_layers=1
    ),
}


@pytest.fixture(scope="module")
def kernels() -> KernelSet:
    found = load_kernels(lambda _text: None)
    if found is None or found[torch.bfloat16].products is None:
        pytest.skip("this processor or compiler has no such products")
    return found


class Model:
    """A model of random weights with its pool, computed by layers in one call or by their parts."""

    def __init__(self, config: Any, kernels: KernelSet, *, whole: bool) -> None:
        torch.manual_seed(5)
        model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16).eval()
        for weight in model.parameters():  # biases and norms that say something
            weight.data += 0.05 * torch.randn_like(weight)
        self.beats = 0
        attention = PagedAttention(NativeAttention(kernels, 16), self._beat)
        runner = ModelRunner(model, attention, torch.device("cpu"))
        own = kernels[torch.bfloat16]
        assert own.products is not None
        ops = LayerOps(NativeOps(own), own.products, own if whole else None)
        with torch.inference_mode():
            fuse_layers(model, attention, ops)
            attention.install(model)
            runner.logits([1, 2], [Span(0, 2, ())], [1])
            self.fused = FusedModel(model, attention, ops)
        assert (self.fused.stack is not None) == whole
        runner.replace_model(self.fused)
        runner.allocate(32)
        self.runner = runner

    def _beat(self) -> None:
        self.beats += 1

    def hidden(self, ids: Sequence[int], spans: Sequence[Span]) -> torch.Tensor:
        """Logits [tokens, vocab] of a step."""
        return self.runner.logits(ids, spans, range(len(ids)))


@pytest.mark.parametrize("name", CONFIGS)
def test_layers_in_one_call_are_equal_to_their_parts(name: str, kernels: KernelSet) -> None:
    """Prefills of several lengths, chunks beside decode rows, decode rows alone; all of it once
    more in another pool."""
    whole, parts = (Model(CONFIGS[name], kernels, whole=one) for one in (True, False))
    tables = [[7, 3, 11], [4, 30, 12, 5, 9], [1], [2, 8], [10, 13]]
    lengths = [5, 61, 1, 17, 19]
    steps = [
        [Span(0, n, table) for n, table in zip(lengths, tables, strict=True)],
        [Span(5, 1, tables[0]), Span(61, 9, tables[1]), Span(1, 1, tables[2])],
        [Span(6, 1, tables[0]), Span(70, 1, tables[1]), Span(17, 1, tables[3])],
    ]
    torch.manual_seed(1)
    for _pool in range(2):
        for spans in steps:
            ids = torch.randint(97, (sum(span.length for span in spans),)).tolist()
            found, expected = whole.hidden(ids, spans), parts.hidden(ids, spans)
            assert found.isfinite().all()
            assert torch.equal(found, expected)
        for model in (whole, parts):
            model.runner.allocate(48)
    assert whole.beats == parts.beats


def test_a_text_that_is_not_stored_goes_by_the_parts(kernels: KernelSet) -> None:
    whole, parts = (Model(CONFIGS["llama"], kernels, whole=one) for one in (True, False))
    spans = [Span(0, 4, ()), Span(0, 3, ())]
    assert torch.equal(
        whole.hidden([1, 2, 3, 4, 5, 6, 7], spans), parts.hidden([1, 2, 3, 4, 5, 6, 7], spans)
    )
    one = [Span(0, 3, [1])]  # and what comes after it is computed as before
    assert torch.equal(whole.hidden([1, 2, 3], one), parts.hidden([1, 2, 3], one))
