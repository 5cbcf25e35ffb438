"""How many KV blocks the memory holds: on the CPU a share of what is free, on GPUs what is left.

On a GPU the largest step is run first, without storing anything. What it needed at its peak is
kept free; the pool takes the rest of the share that the engine may fill. With a model spread over
several GPUs each holds the blocks of its own layers, so the fullest one decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch

from worker.engine.config import EngineConfig
from worker.engine.memory import free_memory
from worker.engine.protocol import Job, ModelLoadError, SequenceParams
from worker.engine.sequence import sequences_of
from worker.model.attention import LayerShapes, Span
from worker.model.runner import ModelRunner
from worker.model.sampler import sample

_GIB: Final = 1024**3


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """A GPU's memory in bytes: all of it, what is free, and what a step needs at its peak."""

    total: int
    free: int
    step: int

    def blocks(self, share: float, per_block: int) -> int:
        """Blocks of `per_block` bytes that fit into `share` of it beside what is there."""
        used = self.total - self.free
        return max(0, int(self.total * share) - used - self.step) // per_block


def num_blocks_for(
    config: EngineConfig,
    layers: LayerShapes,
    *,
    block_size: int,
    context_length: int,
    max_running: int,
) -> int:
    """Blocks of the pool: as many as its memory holds, at most what a full batch can use.

    Main memory, and what the configuration allows, are shared by all ranks.

    Raises:
        ModelLoadError: when there is no memory for two blocks.
    """
    ranks = config.tensor_parallel_size
    per_device: dict[torch.device, int] = {}
    for shape, device, dtype in layers.values():
        size = block_size * shape.bytes_per_token(dtype)
        per_device[device] = per_device.get(device, 0) + size
    usable = -(-context_length // block_size) * max_running
    if config.kv_cache_gb is not None:
        found = int(config.kv_cache_gb * _GIB / ranks) // sum(per_device.values())
    elif all(device.type == "cuda" for device in per_device):
        share = config.gpu_memory_share
        # one block more than the pool has: a backend may need one of its own
        held = [_memory_of(device).blocks(share, size) - 1 for device, size in per_device.items()]
        found = min(usable, *held)
    else:
        memory = min(0.3 * free_memory(), 4 * _GIB)
        found = min(usable, int(memory / ranks) // sum(per_device.values()))
    if found < 2:
        raise ModelLoadError(
            f"the KV pool would hold {max(0, found) * block_size} tokens only: give more memory to "
            "it with --kv-cache-gb, or less to a step with --max-batch-tokens"
        )
    return found


def rehearse(
    runner: ModelRunner,
    layers: LayerShapes,
    *,
    max_batch_tokens: int,
    max_running: int,
    context_length: int,
) -> None:
    """Run the largest step on GPUs, so that `num_blocks_for` knows its peak.

    Raises:
        ModelLoadError: when there is not enough memory even for that.
    """
    devices = {device for _shape, device, _dtype in layers.values() if device.type == "cuda"}
    for device in devices:
        torch.cuda.reset_peak_memory_stats(device)
    try:
        rows = min(max_running, max_batch_tokens)
        logits = runner.logits(
            [1] * max_batch_tokens,
            largest_step(max_batch_tokens, context_length),
            range(max_batch_tokens - rows, max_batch_tokens),
        )
        params = SequenceParams(max_tokens=1, temperature=0.7, top_p=0.9, logprobs=5)
        job = Job("", [1], params, n=rows)
        sample(logits, sequences_of(job, 0, 0.0))
    except torch.OutOfMemoryError as error:
        raise ModelLoadError(
            f"no memory for a step of {max_batch_tokens} tokens beside the weights: give fewer "
            "with --max-batch-tokens, or spread the model over more GPUs"
        ) from error
    for device in devices:
        torch.cuda.synchronize(device)


def largest_step(max_batch_tokens: int, context_length: int) -> list[Span]:
    """A step full of prompts as long as they can be, of which nothing is stored."""
    left, spans = max_batch_tokens, []
    while left:
        spans.append(Span(0, min(left, context_length), ()))
        left -= spans[-1].length
    return spans


def devices_of(layers: LayerShapes) -> Sequence[torch.device]:
    """Where layers are, each device once."""
    return list(dict.fromkeys(device for _shape, device, _dtype in layers.values()))


def _memory_of(device: torch.device) -> DeviceMemory:
    """After a rehearsal: its peak is what torch had allocated at most beyond what it has now."""
    step = torch.cuda.max_memory_allocated(device) - torch.cuda.memory_allocated(device)
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return DeviceMemory(total, free, step)
