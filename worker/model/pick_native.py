"""Chooses the tokens of rows on the CPU by one call of an own kernel (`sampling.cpp`)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence as SequenceOf
from ctypes import c_int64, c_void_p
from dataclasses import dataclass
from typing import Final

import torch

from worker.engine.sequence import Sequence
from worker.model.noise import is_greedy, uniform

_NAMES: Final = {torch.float32: "pick_f32", torch.bfloat16: "pick_bf16"}


class _Call(ctypes.Structure):
    """`struct Pick` of sampling.cpp."""

    _fields_ = (
        *((name, c_void_p) for name in ("logits", "temperature", "top_k", "top_p", "min_p")),
        *((name, c_void_p) for name in ("draws", "tokens", "finite")),
        *((name, c_int64) for name in ("num", "vocab", "stride")),
    )


@dataclass(frozen=True, slots=True)
class _Picked:
    """As `sampler.Picked`."""

    tokens: torch.Tensor
    finite: torch.Tensor

    def wider(self, _rows: set[int]) -> dict[int, int]:
        """None: every token is chosen at once."""
        return {}


class NativePick:
    """A `sampler.Pick`, for logits on the CPU."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._kernels = {dtype: library[name] for dtype, name in _NAMES.items()}
        for kernel in self._kernels.values():
            kernel.argtypes, kernel.restype = [c_void_p], None

    def __call__(
        self, logits: torch.Tensor, shaped: torch.Tensor, seqs: SequenceOf[Sequence]
    ) -> _Picked:
        """As `sampler.Pick`."""
        params = [seq.params for seq in seqs]
        greedy = [is_greedy(one) for one in params]
        temperature = [
            0.0 if takes_best else one.temperature
            for one, takes_best in zip(params, greedy, strict=True)
        ]
        top_k = [min(max(0, one.top_k), shaped.shape[-1]) for one in params]
        draws = [
            0.0 if takes_best else uniform(seq.params.seed, seq.index, seq.num_output)
            for seq, takes_best in zip(seqs, greedy, strict=True)
        ]
        picked = self._run(
            shaped,
            torch.tensor(temperature),
            torch.tensor(top_k),
            torch.tensor([one.top_p for one in params]),
            torch.tensor([one.min_p for one in params]),
            torch.tensor(draws, dtype=torch.float64),
        )
        if shaped is logits:
            return picked
        # tokens that are banned have logits that are not finite
        zeros = torch.zeros(len(seqs))
        raw = self._run(logits, zeros, torch.tensor(top_k), zeros, zeros, zeros.double())
        return _Picked(picked.tokens, raw.finite)

    def _run(self, logits: torch.Tensor, *how: torch.Tensor) -> _Picked:
        if logits.dtype not in self._kernels:
            logits = logits.float()
        if logits.stride(-1) != 1:
            logits = logits.contiguous()
        num, vocab = logits.shape
        tokens = torch.empty(num, dtype=torch.int64)
        finite = torch.empty(num, dtype=torch.int64)
        tensors = (logits, *how, tokens, finite)
        call = _Call(
            *(tensor.data_ptr() for tensor in tensors),
            num=num,
            vocab=vocab,
            stride=logits.stride(0),
        )
        self._kernels[logits.dtype](ctypes.addressof(call))
        return _Picked(tokens, finite.bool())
