"""The KV pool's tensors: keys and values of every layer, in blocks.

A layer's keys have the shape [kv_heads, num_blocks, block_size, head_dim], values likewise, so a
sequence's blocks gather into one contiguous run of tokens a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class LayerShape:
    """Size of one layer's keys and values, of one token."""

    kv_heads: int
    key_dim: int
    value_dim: int

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        """Bytes that one token takes in this layer."""
        return self.kv_heads * (self.key_dim + self.value_dim) * dtype.itemsize


class KVCache:
    """Keys and values of all layers.

    Args:
        layers: layer index to its shape, device and dtype.
        num_blocks: blocks in the pool.
        block_size: tokens a block.
    """

    def __init__(
        self,
        layers: dict[int, tuple[LayerShape, torch.device, torch.dtype]],
        num_blocks: int,
        block_size: int,
    ) -> None:
        self.block_size = block_size
        self._keys: dict[int, torch.Tensor] = {}
        self._values: dict[int, torch.Tensor] = {}
        for index, (shape, device, dtype) in layers.items():
            head = (shape.kv_heads, num_blocks, block_size)
            self._keys[index] = torch.zeros((*head, shape.key_dim), device=device, dtype=dtype)
            self._values[index] = torch.zeros((*head, shape.value_dim), device=device, dtype=dtype)

    def write(
        self, layer: int, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> None:
        """Store the step's new tokens.

        Args:
            slots: [tokens], where each goes: block * block_size + offset.
            key, value: [kv_heads, tokens, head_dim].
        """
        self._keys[layer].flatten(1, 2).index_copy_(1, slots, key)
        self._values[layer].flatten(1, 2).index_copy_(1, slots, value)

    def clear(self, blocks: list[int]) -> None:
        """Zero `blocks`: a not-a-number left in them would spread through masked positions."""
        for pool in (*self._keys.values(), *self._values.values()):
            pool[:, blocks] = 0

    def gather(self, layer: int, blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of `blocks` [sequences, n], each [kv_heads, sequences, tokens, dim]."""
        return _gather(self._keys[layer], blocks), _gather(self._values[layer], blocks)


def _gather(pool: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    found = pool.index_select(1, blocks.flatten())
    return found.view(pool.shape[0], blocks.shape[0], -1, pool.shape[-1])
