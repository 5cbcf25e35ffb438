"""Decoder layers of the Llama pattern on the CPU with fewer and larger operations.

A layer of transformers runs about 45 operations beside its attention; here it is one where the
engine has all its own kernels (`layer_native.py`), 8 where it has no products, 14 without any: one
product for queries, keys and values, rotation of queries and keys together, and silu, the product
with the gate and both residual additions inside the matrix products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from worker.model.attention import PagedAttention, Score, window_of
from worker.model.kernels import Kernels
from worker.model.layer_native import LayerParts, NativeStack
from worker.model.linear_cpu import Products, is_packable, pad_rows

LAYERS: Final = frozenset(
    {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"}
)
"""Classes of transformers that compute exactly what `FusedLayer` does."""


class RowOps(Protocol):
    """The operations of a layer that are no matrix products."""

    def norm(self, rows: torch.Tensor, norm: Any) -> torch.Tensor:
        """RMSNorm of the last dimension of [n, width] or [n, heads, width]."""

    def rotate(self, heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Rotary embedding of heads [n, heads, dim] by tables [n, dim]; may write to `heads`."""


class TorchOps:
    """`RowOps` by torch's own operations."""

    def norm(self, rows: torch.Tensor, norm: Any) -> torch.Tensor:
        """As `RowOps.norm`."""
        return F.rms_norm(rows, norm.weight.shape, norm.weight, norm.variance_epsilon)

    def rotate(self, heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """As `RowOps.rotate`."""
        half = heads.shape[-1] // 2
        signed = torch.cat([-sin[:, :half], sin[:, half:]], -1)
        swapped = heads.reshape(*heads.shape[:-1], 2, half).flip(-2).view(heads.shape)
        return torch.addcmul(heads * cos[:, None], swapped, signed[:, None])


class NativeOps:
    """`RowOps` by the engine's own kernels."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels

    def norm(self, rows: torch.Tensor, norm: Any) -> torch.Tensor:
        """As `RowOps.norm`; heads are normalised in place."""
        out = rows if rows.dim() == 3 else torch.empty_like(rows)
        return self._kernels.rms_norm(rows, norm.weight, norm.variance_epsilon, out)

    def rotate(self, heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """As `RowOps.rotate`, in place."""
        self._kernels.rotate(heads, cos, sin)
        return heads


@dataclass(frozen=True, slots=True)
class LayerOps:
    """What fused layers compute with.

    Attributes:
        kernels: of the model's dtype, which may compute whole layers; None without any.
    """

    rows: RowOps
    products: Products
    kernels: Kernels | None = None


class FusedLayer(nn.Module):
    """Computes what `layer`, one of `LAYERS`, computes; its model may call it in its place.

    Rows are padded to the number that the packed products need; what is behind the step's tokens
    is never looked at.

    Attributes:
        window: tokens that a token sees; what the mask of the last call by the model said.
    """

    def __init__(self, layer: Any, attention: PagedAttention, ops: LayerOps) -> None:
        super().__init__()
        own, mlp = layer.self_attn, layer.mlp
        products, dim = ops.products, int(own.head_dim)
        self.parts = LayerParts(
            index=int(own.layer_idx),
            qkv=products.weight([own.q_proj, own.k_proj, own.v_proj]),
            out=products.weight([own.o_proj]),
            gated=products.gated(mlp.gate_proj, mlp.up_proj),
            down=products.weight([mlp.down_proj]),
            norm=layer.input_layernorm,
            mlp_norm=layer.post_attention_layernorm,
            query_norm=getattr(own, "q_norm", None),
            key_norm=getattr(own, "k_norm", None),
            heads=own.q_proj.out_features // dim,
            kv_heads=own.k_proj.out_features // dim,
            dim=dim,
            scale=float(own.scaling),
        )
        self._min_rows = products.min_rows
        self._attention = attention
        self._ops = ops.rows
        self.window: int | None = None

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        **_unused: Any,
    ) -> torch.Tensor:
        """As the layer's model calls it: [1, rows, hidden] -> [1, rows or more, hidden]."""
        self.window = window_of(attention_mask)
        cos, sin = (table[0] for table in position_embeddings)
        return self.compute(pad_rows(hidden_states[0], self._min_rows), cos, sin).unsqueeze(0)

    def compute(self, rows: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """One layer.

        Args:
            rows: [n, hidden], n at least the products' `min_rows`.
            cos, sin: rotary tables [tokens, dim] of the step's tokens, the first of the rows.
        """
        num, ops, own = len(cos), self._ops, self.parts
        heads, rotated = own.heads, own.heads + own.kv_heads
        qkv = own.qkv.linear(ops.norm(rows, own.norm)).view(len(rows), -1, own.dim)
        turned = qkv[:num, :rotated]
        if own.query_norm is not None:
            parts = turned[:, :heads], turned[:, heads:]
            norms = own.query_norm, own.key_norm
            turned = torch.cat([ops.norm(*pair) for pair in zip(parts, norms, strict=True)], 1)
        turned = ops.rotate(turned, cos, sin)
        attended = qkv.new_zeros((len(rows), heads, own.dim))
        self._attention.attend(
            own.index,
            turned[:, :heads],
            turned[:, heads:],
            qkv[:num, rotated:],
            Score(own.scale, window=self.window),
            attended[:num],
        )
        rows = own.out.add(attended.flatten(1), rows)
        inner = own.gated.compute(ops.norm(rows, own.mlp_norm))
        return own.down.add(inner, rows)


@dataclass(frozen=True, slots=True)
class Output:
    """What a forward yields, under the names that transformers has for it; [1, n, ...]."""

    last_hidden_state: torch.Tensor | None = None
    logits: torch.Tensor | None = None


class FusedModel:
    """A model whose layers are all fused: its own embedding, rotary tables, norm and output layer,
    without what transformers does around them at each call.

    Made after the model itself has run once, when its layers know their windows.

    Attributes:
        base_model: called as this is, it yields hidden states.
        stack: computes each layer in one call; None where its parts are called.
    """

    def __init__(self, model: Any, attention: PagedAttention, ops: LayerOps) -> None:
        inner = model.base_model
        self._embed = inner.get_input_embeddings()
        self._rotary = inner.rotary_emb
        self._layers: list[FusedLayer] = list(inner.layers)
        self._norm = inner.norm
        self._head = model.get_output_embeddings()
        self._ops = ops.rows
        self._min_rows = ops.products.min_rows
        self.stack = _stack(self._layers, attention, ops)
        self.base_model = self._hidden

    def __call__(
        self, *, input_ids: torch.Tensor, logits_to_keep: torch.Tensor, **rest: Any
    ) -> Output:
        """Logits at the positions `logits_to_keep` of a row of tokens, [1, n]."""
        hidden = self._hidden(input_ids=input_ids, **rest).last_hidden_state
        assert hidden is not None
        return Output(logits=self._head(hidden[:, logits_to_keep]))

    forward = __call__

    def _hidden(
        self, *, input_ids: torch.Tensor, position_ids: torch.Tensor, **_unused: Any
    ) -> Output:
        embedded = self._embed(input_ids)
        cos, sin = self._rotary(embedded, position_ids)
        rows = pad_rows(embedded[0], self._min_rows)
        if self.stack is not None and self.stack.takes_step():
            rows = self.stack.compute(rows, cos[0], sin[0])
        else:
            for layer in self._layers:
                rows = layer.compute(rows, cos[0], sin[0])
        return Output(last_hidden_state=self._ops.norm(rows, self._norm).unsqueeze(0))


def _stack(
    layers: Sequence[FusedLayer], attention: PagedAttention, ops: LayerOps
) -> NativeStack | None:
    """What computes the layers in one call each, where that can be."""
    kernels = ops.kernels
    parts, windows = [layer.parts for layer in layers], [layer.window for layer in layers]
    if kernels is None or not NativeStack.takes(parts):
        return None
    return NativeStack(kernels.library, parts, windows, attention)


def fuse_layers(model: nn.Module, attention: PagedAttention, ops: LayerOps) -> int:
    """Replace the decoder layers that can be fused, in place; returns how many."""
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if _can_fuse(child, ops.products)
    ]
    for parent, name, layer in found:
        setattr(parent, name, FusedLayer(layer, attention, ops))
    return len(found)


def has_fused_layers(model: nn.Module) -> bool:
    """Whether `fuse_layers` changed this model."""
    return any(isinstance(layer, FusedLayer) for layer in model.modules())


def all_layers_fused(model: Any) -> bool:
    """Whether `FusedModel` can run it."""
    layers = getattr(model.base_model, "layers", ())
    return len(layers) > 0 and all(isinstance(layer, FusedLayer) for layer in layers)


def _can_fuse(layer: Any, products: Products) -> bool:
    if type(layer).__name__ not in LAYERS or not type(layer).__module__.startswith("transformers."):
        return False
    own, mlp = layer.self_attn, layer.mlp
    linears = [own.q_proj, own.k_proj, own.v_proj, own.o_proj]
    linears += [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    norms = [layer.input_layernorm, layer.post_attention_layernorm]
    norms += [norm for name in ("q_norm", "k_norm") if (norm := getattr(own, name, None))]
    rope = getattr(own.config, "rope_parameters", None) or {}
    return (
        all(is_packable(linear, products) for linear in linears)
        and {norm.weight.dtype for norm in norms} == {own.q_proj.weight.dtype}
        and own.config.hidden_act == "silu"
        and rope.get("partial_rotary_factor", 1.0) == 1.0
        and (own.q_proj.bias is None) == (own.k_proj.bias is None) == (own.v_proj.bias is None)
    )
