"""How many KV blocks fit: pure sums, and the largest step."""

from __future__ import annotations

import pytest
import torch

from worker.engine.config import EngineConfig
from worker.engine.protocol import ModelLoadError
from worker.model.attention import LayerShape, LayerShapes
from worker.model.kv_size import DeviceMemory, largest_step, num_blocks_for

GIB = 1024**3


def layers(number: int) -> LayerShapes:
    shape = LayerShape(2, 64, 64)
    return {at: (shape, torch.device("cpu"), torch.bfloat16) for at in range(number)}


def blocks(config: EngineConfig, context_length: int = 4096, max_running: int = 8) -> int:
    return num_blocks_for(
        config,
        layers(4),
        block_size=16,
        context_length=context_length,
        max_running=max_running,
    )


def test_the_pool_takes_what_weights_and_a_step_leave_of_the_share() -> None:
    memory = DeviceMemory(total=80 * GIB, free=60 * GIB, step=5 * GIB)
    assert memory.blocks(0.9, GIB) == 72 - 20 - 5
    assert memory.blocks(0.9, 10 * GIB) == 4
    assert memory.blocks(0.2, GIB) == 0


def test_a_given_size_is_kept_and_shared_by_ranks() -> None:
    per_block = 16 * 4 * 2 * (64 + 64) * 2
    config = EngineConfig(model_path="m", kv_cache_gb=1.0)
    assert blocks(config) == GIB // per_block
    assert blocks(EngineConfig(model_path="m", kv_cache_gb=1.0, tensor_parallel_size=2)) == (
        GIB // 2 // per_block
    )


def test_no_more_than_a_full_batch_can_use() -> None:
    assert blocks(EngineConfig(model_path="m"), context_length=33, max_running=2) == 6


def test_too_little_memory_says_what_to_do() -> None:
    with pytest.raises(ModelLoadError, match="--kv-cache-gb, or less to a step"):
        blocks(EngineConfig(model_path="m", kv_cache_gb=1e-6))


def test_the_largest_step_is_full_of_long_prompts() -> None:
    spans = largest_step(8192, 3000)
    assert [span.length for span in spans] == [3000, 3000, 2192]
    assert not any(span.blocks for span in spans)
