"""Decoder layers of the Llama pattern on the CPU, one call of the engine's own kernels each, in
bfloat16 (`layer.cpp`).

It computes what `FusedLayer.compute` does, for steps whose tokens are all stored; bit for bit, as
far as the compiler makes the same of the same lines in two files.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_float, c_int64, c_void_p
from dataclasses import dataclass
from typing import Any

import torch

from worker.model.attention import PagedAttention
from worker.model.attention_native import NativeAttention
from worker.model.linear_cpu import Gated, Weight
from worker.model.linear_native import Packed, ProductCall


@dataclass(frozen=True, slots=True)
class LayerParts:
    """What a layer is made of.

    Attributes:
        index: its number.
        qkv, out, gated, down: packed weights; queries, keys and values are one product.
        norm, mlp_norm: RMSNorms of the rows. query_norm, key_norm: of the heads, or None.
        heads, kv_heads, dim: of the attention. scale: factor of the scores.
    """

    index: int
    qkv: Weight
    out: Weight
    gated: Gated
    down: Weight
    norm: Any
    mlp_norm: Any
    query_norm: Any
    key_norm: Any
    heads: int
    kv_heads: int
    dim: int
    scale: float


class _Layer(ctypes.Structure):
    """`struct Layer` of layer.cpp."""

    _fields_ = (
        *((name, ProductCall) for name in ("qkv", "out", "gated", "down")),
        *((name, c_void_p) for name in ("keys", "values")),
        *((name, c_int64) for name in ("num_blocks", "block_size")),
        *((name, c_void_p) for name in ("norm", "mlp_norm", "query_norm", "key_norm")),
        *((name, c_int64) for name in ("heads", "kv_heads", "dim")),
        *((name, c_float) for name in ("eps", "mlp_eps", "query_eps", "key_eps", "scale")),
    )

    @classmethod
    def of(cls, parts: LayerParts) -> _Layer:
        """Of packed weights; without a pool."""
        layer = cls(
            qkv=_packed(parts.qkv).call(),
            out=_packed(parts.out).call(adds=True),
            gated=_packed(parts.gated).call(),
            down=_packed(parts.down).call(adds=True),
            heads=parts.heads,
            kv_heads=parts.kv_heads,
            dim=parts.dim,
            scale=parts.scale,
        )
        for name, eps, norm in (
            ("norm", "eps", parts.norm),
            ("mlp_norm", "mlp_eps", parts.mlp_norm),
            ("query_norm", "query_eps", parts.query_norm),
            ("key_norm", "key_eps", parts.key_norm),
        ):
            if norm is not None:
                setattr(layer, name, norm.weight.data_ptr())
                setattr(layer, eps, norm.variance_epsilon)
        return layer


class _Step(ctypes.Structure):
    """`struct Step` of layer.cpp."""

    _fields_ = (
        *((name, c_void_p) for name in ("rows", "normed", "qkv", "attended", "inner")),
        *((name, c_void_p) for name in ("cos", "sin", "slots", "tasks")),
        ("num", c_int64),
    )


def _packed(weight: Weight | Gated) -> Packed:
    assert isinstance(weight, Packed)
    return weight


def _is_native(parts: LayerParts) -> bool:
    weights = (parts.qkv, parts.out, parts.gated, parts.down)
    return all(isinstance(weight, Packed) for weight in weights)


def _shape(parts: LayerParts) -> tuple[int, ...]:
    return parts.heads, parts.kv_heads, parts.dim, _packed(parts.gated).outputs


class NativeStack:
    """The layers of one model. Not for two threads at once.

    Args:
        library: one that `has_products`.
        parts: of all layers, in bfloat16; their weights stay where they are.
        windows: tokens that a token sees in each layer, None for all.
        attention: the model's, over a `NativeAttention`.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        parts: Sequence[LayerParts],
        windows: Sequence[int | None],
        attention: PagedAttention,
    ) -> None:
        assert library.layer_size() == ctypes.sizeof(_Layer)
        assert library.step_size() == ctypes.sizeof(_Step)
        library.layer.argtypes, library.layer.restype = [c_void_p, c_void_p], None
        self._run = library.layer
        self._parts, self._windows, self._attention = list(parts), list(windows), attention
        self._layers = [_Layer.of(one) for one in self._parts]

    @staticmethod
    def takes(parts: Sequence[LayerParts]) -> bool:
        """Whether layers are of one shape and made of what is needed."""
        return all(map(_is_native, parts)) and len(set(map(_shape, parts))) == 1

    def takes_step(self) -> bool:
        """Whether the step that was planned last can be computed."""
        backend = self._attention.backend
        return isinstance(backend, NativeAttention) and backend.stores_all

    def compute(self, rows: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """All layers.

        Args:
            rows: [n, hidden], dense, of the n tokens of the step that was planned last.
            cos, sin: rotary tables [n, dim].
        """
        backend = self._attention.backend
        assert isinstance(backend, NativeAttention)
        assert len(rows) == len(cos) == len(backend.slots)
        first, num = self._parts[0], len(rows)
        out = rows.clone()  # which the layers write to
        cos, sin = cos.contiguous(), sin.contiguous()
        normed = rows.new_empty(num, rows.shape[1])
        qkv = rows.new_empty(num, (first.heads + 2 * first.kv_heads) * first.dim)
        attended = rows.new_empty(num, first.heads * first.dim)
        inner = rows.new_empty(num, _packed(first.gated).outputs)
        used = (out, normed, qkv, attended, inner, cos, sin, backend.slots)
        step = _Step(*(tensor.data_ptr() for tensor in used), num=num)
        group = first.heads // first.kv_heads
        for parts, layer, window in zip(self._parts, self._layers, self._windows, strict=True):
            self._attention.beat()
            step.tasks = ctypes.addressof(backend.tasks(window, group))
            keys, values = backend.pool(parts.index)
            layer.keys, layer.values = keys.data_ptr(), values.data_ptr()
            layer.num_blocks, layer.block_size = keys.shape[1], keys.shape[3]
            self._run(ctypes.addressof(layer), ctypes.addressof(step))
        return out
