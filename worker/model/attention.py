"""Paged attention behind transformers' AttentionInterface.

A step's tokens lie flat in one row, [1, tokens]: decode rows (one token each) and prefill chunks
(a run of tokens each). `PagedAttention` stands between a model's layers and a backend, which owns
the KV pool and computes: it takes what a layer passes, in the layout of transformers, and hands it
on as [tokens, heads, dim].

The mask function registered beside it builds no mask. It returns None for full attention, and for
a sliding window a tensor without storage whose last dimension is the window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from worker.engine.watchdog import Beat

IMPLEMENTATION: Final = "trireme_paged"


class UnsupportedAttention(Exception):
    """A layer asks for something that this attention does not do."""


@dataclass(frozen=True, slots=True)
class Span:
    """One sequence's part of a step.

    Attributes:
        start: position of its first token within the sequence.
        length: tokens of it in this step.
        blocks: its block table; empty when nothing is stored (embeddings).
    """

    start: int
    length: int
    blocks: Sequence[int]

    @property
    def end(self) -> int:
        """Tokens of the sequence once the step is done."""
        return self.start + self.length

    @property
    def is_decode(self) -> bool:
        """Whether it is one token after stored ones."""
        return self.length == 1 and self.start > 0 and bool(self.blocks)


@dataclass(frozen=True, slots=True)
class LayerShape:
    """Size of one layer's keys and values, of one token."""

    kv_heads: int
    key_dim: int
    value_dim: int

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        """Bytes that one token takes in this layer."""
        return self.kv_heads * (self.key_dim + self.value_dim) * dtype.itemsize


@dataclass(frozen=True, slots=True)
class Score:
    """How scores are made from queries and keys.

    Attributes:
        scale: factor of the products.
        softcap: of Gemma 2, None for none.
        window: tokens that a token sees, itself included; None for all.
    """

    scale: float
    softcap: float | None = None
    window: int | None = None


LayerShapes: TypeAlias = dict[int, tuple[LayerShape, torch.device, torch.dtype]]


class AttentionBackend(Protocol):
    """Owns the KV pool and attends over it."""

    block_size: int

    def allocate(self, layers: LayerShapes, num_blocks: int) -> None:
        """Make the pool, in place of one made before."""

    def plan(self, spans: Sequence[Span]) -> None:
        """Prepare a step: what lies where in its row, in the order of `spans`."""

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        score: Score,
        out: torch.Tensor,
    ) -> None:
        """Store the step's keys and values, and attend over what its sequences have stored.

        Spans without blocks store nothing and see themselves alone.

        Args:
            query: [tokens, heads, key_dim]; key: [tokens, kv_heads, key_dim]; value: [tokens,
                kv_heads, value_dim]; any strides, the last dimension dense.
            out: [tokens, heads, value_dim], written.
        """

    def clear(self, blocks: Sequence[int]) -> None:
        """Zero `blocks`: a not-a-number left in them would spread through masked positions."""

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy the first block of each pair to the second; none is in two pairs' second place, or
        is both a first and a second."""


class PagedAttention:
    """The attention function of one model.

    Args:
        backend: computes.
        beat: as the attribute.

    Attributes:
        beat: called once a layer of every forward, here or by what computes layers without this.
        layers: the shape of each layer's keys and values, as seen in the forwards so far.
    """

    def __init__(self, backend: AttentionBackend, beat: Beat = lambda: None) -> None:
        self.backend = backend
        self.beat = beat
        self.layers: LayerShapes = {}

    def install(self, model: Any) -> None:
        """Make `model` attend through this object.

        Raises:
            UnsupportedAttention: when the model does not use the attention interface.
        """
        AttentionInterface.register(IMPLEMENTATION, self._attend)
        AttentionMaskInterface.register(IMPLEMENTATION, _window_only)
        model.set_attn_implementation(IMPLEMENTATION)
        if model.config._attn_implementation != IMPLEMENTATION:
            raise UnsupportedAttention("the model does not use the attention interface")

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        score: Score,
        out: torch.Tensor,
    ) -> None:
        """As `AttentionBackend.attend`; notes the layer's shape."""
        self.beat()
        if layer not in self.layers:
            shape = LayerShape(key.shape[1], key.shape[2], value.shape[2])
            self.layers[layer] = (shape, key.device, key.dtype)
        self.backend.attend(layer, query, key, value, score, out)

    def _attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        softcap: float | None = None,
        s_aux: torch.Tensor | None = None,
        **_unused: Any,
    ) -> tuple[torch.Tensor, None]:
        """transformers' attention signature.

        Args:
            query: [1, heads, tokens, head_dim]; key, value: [1, kv_heads, tokens, head_dim].
            attention_mask: what `_window_only` returned.

        Returns:
            [1, tokens, heads, head_dim], and None for the weights.
        """
        if query.shape[0] != 1:
            raise UnsupportedAttention("a forward outside of a step")
        if s_aux is not None:
            raise UnsupportedAttention("attention sinks")
        layer = int(getattr(module, "layer_idx"))  # noqa: B009  # not in nn.Module's type
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        out = query.new_empty((query.shape[2], query.shape[1], value.shape[-1]))
        self.attend(
            layer,
            query[0].transpose(0, 1),
            key[0].transpose(0, 1),
            value[0].transpose(0, 1),
            Score(scale, softcap or None, window_of(attention_mask)),
            out,
        )
        return out.unsqueeze(0), None


def _window_only(*_args: Any, local_size: int | None = None, **_kwargs: Any) -> torch.Tensor | None:
    """Instead of a mask: None, or a tensor without storage that is `local_size` wide."""
    return None if local_size is None else torch.empty((1, 1, 1, local_size), device="meta")


def window_of(mask: torch.Tensor | None) -> int | None:
    """The window that a layer was given in place of a mask."""
    return None if mask is None else mask.shape[-1]


def supported_by_mask(config: Any) -> bool:
    """Whether full causal attention and sliding windows are all that `config` asks for."""
    text = config.get_text_config()
    layer_types = set(getattr(text, "layer_types", None) or ())
    return (
        not getattr(text, "attention_chunk_size", None)
        and not getattr(text, "use_bidirectional_attention", None)
        and layer_types <= {"full_attention", "sliding_attention"}
    )
