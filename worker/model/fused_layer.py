"""Decoder layers of the Llama pattern on the CPU with fewer and larger operations.

A layer of transformers runs about 45 operations beside its attention; here are 14: one product
for queries, keys and values, rotation of queries and keys together, and silu, the product with the
gate and both residual additions inside the matrix products. What surrounds the layers (embedding,
rotary tables, masks, output layer) remains the model's own, and the comparison at load covers the
whole.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import nn

from worker.model.attention import PagedAttention, Score, window_of
from worker.model.linear_cpu import PackedWeight, is_packable, pad_rows

LAYERS: Final = frozenset(
    {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"}
)
"""Classes of transformers that compute exactly what `FusedLayer` does."""


class _Rotation:
    """The step's rotary tables in the layers' form, made by the first of them for all."""

    def __init__(self) -> None:
        self._cos: torch.Tensor | None = None
        self._made: tuple[torch.Tensor, torch.Tensor] | None = None

    def tables(self, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[1, tokens, dim] each -> [rows, 1, dim]; the sine with the sign of its half."""
        if self._made is None or self._cos is not cos:
            half = cos.shape[-1] // 2
            signed = torch.cat([-sin[0, :, :half], sin[0, :, half:]], -1)
            self._cos = cos
            self._made = (pad_rows(cos[0])[:, None], pad_rows(signed)[:, None])
        return self._made


class FusedLayer(nn.Module):
    """Computes what `layer`, one of `LAYERS`, computes; called as it is called by its model.

    Rows are padded to the number that the packed products need; what is behind the step's tokens
    is never looked at.
    """

    def __init__(self, layer: Any, attention: PagedAttention, rotation: _Rotation) -> None:
        super().__init__()
        own, mlp = layer.self_attn, layer.mlp
        self._index = int(own.layer_idx)
        self._dim = int(own.head_dim)
        self._kv_heads = own.k_proj.out_features // self._dim
        self._heads = own.q_proj.out_features // self._dim
        self._scale = float(own.scaling)
        self._qkv = PackedWeight([own.q_proj, own.k_proj, own.v_proj])
        self._out = PackedWeight([own.o_proj])
        self._gate = PackedWeight([mlp.gate_proj])
        self._up = PackedWeight([mlp.up_proj])
        self._down = PackedWeight([mlp.down_proj])
        self.input_layernorm = layer.input_layernorm
        self.post_attention_layernorm = layer.post_attention_layernorm
        self.q_norm, self.k_norm = getattr(own, "q_norm", None), getattr(own, "k_norm", None)
        self._attention = attention
        self._rotation = rotation

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        **_unused: Any,
    ) -> torch.Tensor:
        """[1, rows, hidden] -> [1, rows or more, hidden]."""
        num = position_embeddings[0].shape[1]
        rows = pad_rows(hidden_states[0])
        heads, kv_heads = self._heads, self._kv_heads

        qkv = self._qkv.linear(_norm(rows, self.input_layernorm))
        qkv = qkv.view(len(rows), -1, self._dim)
        rotated = self._rotate(qkv[:, : heads + kv_heads], position_embeddings)
        attended = torch.zeros_like(qkv[:, :heads], memory_format=torch.contiguous_format)
        self._attention.attend(
            self._index,
            rotated[:num, :heads],
            rotated[:num, heads:],
            qkv[:num, heads + kv_heads :],
            Score(self._scale, window=window_of(attention_mask)),
            attended[:num],
        )
        rows = self._out.add(attended.flatten(1), rows)

        normed = _norm(rows, self.post_attention_layernorm)
        inner = self._up.multiply(normed, self._gate.silu(normed))
        return self._down.add(inner, rows).unsqueeze(0)

    def _rotate(
        self, heads: torch.Tensor, embeddings: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Rotary embedding of queries and keys, [rows, heads + kv_heads, dim]."""
        if self.q_norm is not None and self.k_norm is not None:
            queries, keys = heads[:, : self._heads], heads[:, self._heads :]
            heads = torch.cat([_norm(queries, self.q_norm), _norm(keys, self.k_norm)], 1)
        cos, sin = self._rotation.tables(*embeddings)
        halves = heads.reshape(*heads.shape[:-1], 2, -1)
        swapped = halves.flip(-2).view(heads.shape)
        return torch.addcmul(heads * cos, swapped, sin)


def _norm(rows: torch.Tensor, norm: Any) -> torch.Tensor:
    return F.rms_norm(rows, norm.weight.shape, norm.weight, norm.variance_epsilon)


def fuse_layers(model: nn.Module, attention: PagedAttention) -> int:
    """Replace the decoder layers that can be fused, in place; returns how many."""
    rotation = _Rotation()
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if _can_fuse(child)
    ]
    for parent, name, layer in found:
        setattr(parent, name, FusedLayer(layer, attention, rotation))
    return len(found)


def has_fused_layers(model: nn.Module) -> bool:
    """Whether `fuse_layers` changed this model."""
    return any(isinstance(layer, FusedLayer) for layer in model.modules())


def _can_fuse(layer: Any) -> bool:
    if type(layer).__name__ not in LAYERS or not type(layer).__module__.startswith("transformers."):
        return False
    own, mlp = layer.self_attn, layer.mlp
    linears = [own.q_proj, own.k_proj, own.v_proj, own.o_proj]
    linears += [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    rope = getattr(own.config, "rope_parameters", None) or {}
    return (
        all(map(is_packable, linears))
        and own.config.hidden_act == "silu"
        and rope.get("partial_rotary_factor", 1.0) == 1.0
        and (own.q_proj.bias is None) == (own.k_proj.bias is None) == (own.v_proj.bias is None)
    )
