"""Linear layers on the CPU by the engine's own products (`products.cpp`), in bfloat16.

A decode step of few rows is as fast as memory can be read. Measured on 2 cores with AVX512-BF16
beside oneDNN's packed products (`linear_cpu.py`): docs/performance.md.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_int64, c_void_p
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

from worker.model.linear_cpu import joined

_NOTHING: Final = 0
_ADD: Final = 1
_GATE: Final = 2
_PANEL: Final = 32  # outputs that lie together, as products.cpp has them
_LEAST_SQUEEZED: Final = 0.75
_MOST_SQUEEZED: Final = 0.85
"""Of the bytes of packed weights: what the squeezed ones have at least, and what they are worth."""


class ProductCall(ctypes.Structure):
    """`struct Product` of kernels.h."""

    _fields_ = (
        *((name, c_void_p) for name in ("rows", "weights", "squeezed", "bias", "other", "out")),
        *((name, c_int64) for name in ("num", "inputs", "outputs", "row_stride", "other_stride")),
        ("after", c_int64),
    )


class NativeProducts:
    """Packs weights for the products of a library that `has_products`; as `Products`.

    Args:
        spare_bytes: memory in which weights may stand a second time, squeezed (`squeeze.cpp`):
            products of few rows are as fast as weights are read, and read a quarter less then.

    Attributes:
        min_rows: fewest rows of a product.
        squeezed_bytes: of that memory, what was taken.
    """

    min_rows: Final = 1

    def __init__(self, library: ctypes.CDLL, spare_bytes: int = 0) -> None:
        self._spare_bytes, self.squeezed_bytes = spare_bytes, 0
        library.packed_size.argtypes = [c_int64] * 3
        library.packed_size.restype = c_int64
        library.pack_weight.argtypes = [c_void_p, c_void_p, c_int64, c_int64, c_void_p]
        library.pack_weight.restype = None
        library.squeezed_size.argtypes = [c_void_p, c_int64, c_int64, c_void_p]
        library.squeezed_size.restype = c_int64
        library.squeeze.argtypes = [c_void_p, c_int64, c_int64, c_void_p]
        library.squeeze.restype = None
        library.product.argtypes = [c_void_p]
        library.product.restype = None
        self._library = library

    def with_spare(self, spare_bytes: int) -> NativeProducts:
        """The same, with memory to squeeze weights."""
        return NativeProducts(self._library, spare_bytes)

    @staticmethod
    def takes(linear: nn.Linear) -> bool:
        """Whether a layer can be packed: its inputs are multiplied in pairs."""
        return linear.in_features % 2 == 0 and linear.weight.dtype == torch.bfloat16

    def weight(self, linears: Sequence[nn.Linear]) -> NativeWeight:
        """Layers over the same input as one."""
        weight, bias = joined(linears)
        return NativeWeight(self._library, self._packed(weight), bias, _NOTHING)

    def gated(self, gate: nn.Linear, up: nn.Linear) -> NativeGated:
        """silu(gate) * up of the same input."""
        packed = self._packed(gate.weight.detach(), up.weight.detach())
        bias = None if gate.bias is None else torch.cat([gate.bias.detach(), up.bias.detach()])
        return NativeGated(self._library, packed, bias, _GATE)

    def _packed(self, weight: torch.Tensor, up: torch.Tensor | None = None) -> _Weights:
        outputs, inputs = weight.shape
        size = self._library.packed_size(outputs, inputs, up is not None)
        packed = torch.empty(size, dtype=weight.dtype)
        weight = weight.contiguous()
        up = None if up is None else up.contiguous()
        self._library.pack_weight(
            weight.data_ptr(),
            None if up is None else up.data_ptr(),
            outputs,
            inputs,
            packed.data_ptr(),
        )
        return _Weights(outputs, inputs, packed, self._squeezed(packed, inputs))

    def _squeezed(self, packed: torch.Tensor, inputs: int) -> torch.Tensor | None:
        """The squeezed form, where there is memory for it and it is worth that."""
        if inputs % 4 or packed.nbytes * _LEAST_SQUEEZED > self._spare_bytes - self.squeezed_bytes:
            return None
        panels = len(packed) // (inputs * _PANEL)
        offsets = torch.empty(2 * panels, dtype=torch.int64)
        size = self._library.squeezed_size(packed.data_ptr(), panels, inputs, offsets.data_ptr())
        if size > min(packed.nbytes * _MOST_SQUEEZED, self._spare_bytes - self.squeezed_bytes):
            return None
        self.squeezed_bytes += size
        squeezed = torch.empty(size // 8, dtype=torch.int64)
        squeezed[: len(offsets)] = offsets
        self._library.squeeze(packed.data_ptr(), panels, inputs, squeezed.data_ptr())
        return squeezed


@dataclass(frozen=True, slots=True)
class _Weights:
    """Weights [outputs, inputs], packed, and perhaps squeezed too."""

    outputs: int
    inputs: int
    packed: torch.Tensor
    squeezed: torch.Tensor | None


class Packed:
    """A packed weight [outputs, inputs] and how to call for its product.

    Attributes:
        outputs: values of a row of the product.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        weights: _Weights,
        bias: torch.Tensor | None,
        after: int,
    ) -> None:
        self._product = library.product
        self.outputs = weights.outputs
        self._weights, self._bias, self._after = weights, bias, after
        self._call = self.call()
        self._address = ctypes.addressof(self._call)

    def call(self, *, adds: bool = False) -> ProductCall:
        """A call that lacks its rows, and may be used as long as this is kept.

        Args:
            adds: something is added to the product.
        """
        weights = self._weights
        return ProductCall(
            weights=weights.packed.data_ptr(),
            squeezed=None if weights.squeezed is None else weights.squeezed.data_ptr(),
            bias=None if self._bias is None else self._bias.data_ptr(),
            inputs=weights.inputs,
            outputs=weights.outputs,
            after=_ADD if adds else self._after,
        )

    def _run(self, rows: torch.Tensor) -> torch.Tensor:
        if rows.dtype != torch.bfloat16:
            raise TypeError(f"rows are {rows.dtype}, the weight is bfloat16")
        if rows.stride(-1) != 1:
            rows = rows.contiguous()
        out = rows.new_empty((rows.shape[0], self.outputs))
        call = self._call
        call.num, call.row_stride = rows.shape[0], rows.stride(0)
        call.rows, call.out = rows.data_ptr(), out.data_ptr()
        self._product(self._address)
        return out


class NativeWeight(Packed):
    """A `Weight`. Not for two threads at once."""

    def linear(self, rows: torch.Tensor) -> torch.Tensor:
        """The product, [n, out]."""
        self._call.after = _NOTHING
        return self._run(rows)

    def add(self, rows: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """product + other."""
        call = self._call
        call.after, call.other, call.other_stride = _ADD, other.data_ptr(), other.stride(0)
        return self._run(rows)


class NativeGated(Packed):
    """A `Gated`, likewise."""

    def compute(self, rows: torch.Tensor) -> torch.Tensor:
        """silu(gate) * up, [n, out]."""
        return self._run(rows)
