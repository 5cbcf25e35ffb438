"""Linear layers on the CPU by the engine's own products (`products.cpp`), in bfloat16.

A decode step of few rows is as fast as memory can be read. Measured on 2 cores with AVX512-BF16
beside oneDNN's packed products (`linear_cpu.py`): docs/performance.md.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_int64, c_void_p
from typing import Final

import torch
from torch import nn

from worker.model.linear_cpu import joined

_NOTHING: Final = 0
_ADD: Final = 1
_GATE: Final = 2


class ProductCall(ctypes.Structure):
    """`struct Product` of kernels.h."""

    _fields_ = (
        *((name, c_void_p) for name in ("rows", "weights", "bias", "other", "out")),
        *((name, c_int64) for name in ("num", "inputs", "outputs", "row_stride", "other_stride")),
        ("after", c_int64),
    )


class NativeProducts:
    """Packs weights for the products of a library that `has_products`; a `Packer`.

    Attributes:
        min_rows: fewest rows of a product.
    """

    min_rows: Final = 1

    def __init__(self, library: ctypes.CDLL) -> None:
        library.packed_size.argtypes = [c_int64] * 3
        library.packed_size.restype = c_int64
        library.pack_weight.argtypes = [c_void_p, c_void_p, c_int64, c_int64, c_void_p]
        library.pack_weight.restype = None
        library.product.argtypes = [c_void_p]
        library.product.restype = None
        self._library = library

    @staticmethod
    def takes(linear: nn.Linear) -> bool:
        """Whether a layer can be packed: its inputs are multiplied in pairs."""
        return linear.in_features % 2 == 0 and linear.weight.dtype == torch.bfloat16

    def weight(self, linears: Sequence[nn.Linear]) -> NativeWeight:
        """Layers over the same input as one."""
        weight, bias = joined(linears)
        return NativeWeight(self._library, self._packed(weight), weight.shape, bias, _NOTHING)

    def gated(self, gate: nn.Linear, up: nn.Linear) -> NativeGated:
        """silu(gate) * up of the same input."""
        packed = self._packed(gate.weight.detach(), up.weight.detach())
        bias = None if gate.bias is None else torch.cat([gate.bias.detach(), up.bias.detach()])
        return NativeGated(self._library, packed, gate.weight.shape, bias, _GATE)

    def _packed(self, weight: torch.Tensor, up: torch.Tensor | None = None) -> torch.Tensor:
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
        return packed


class Packed:
    """A packed weight [outputs, inputs] and how to call for its product.

    Attributes:
        outputs: values of a row of the product.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        packed: torch.Tensor,
        shape: Sequence[int],
        bias: torch.Tensor | None,
        after: int,
    ) -> None:
        self._product = library.product
        self.outputs, self._inputs = shape
        self._weight, self._bias, self._after = packed, bias, after
        self._call = self.call()
        self._address = ctypes.addressof(self._call)

    def call(self, *, adds: bool = False) -> ProductCall:
        """A call that lacks its rows, and may be used as long as this is kept.

        Args:
            adds: something is added to the product.
        """
        return ProductCall(
            weights=self._weight.data_ptr(),
            bias=None if self._bias is None else self._bias.data_ptr(),
            inputs=self._inputs,
            outputs=self.outputs,
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
