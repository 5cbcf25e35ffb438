"""Copies between host and device that nobody waits for.

On CUDA they go through pinned memory: torch's allocator for it hands a block out again only when
the copies that use it are done. Anywhere else these are plain tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def to_device(
    values: Sequence[Any], device: torch.device, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """`values` as a tensor on `device`; the copy is queued behind what the device does now."""
    if device.type != "cuda":
        return torch.tensor(values, dtype=dtype, device=device)
    return torch.tensor(values, dtype=dtype, pin_memory=True).to(device, non_blocking=True)


def rows_of(tensor: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """These rows of a tensor; it itself, if they are all."""
    if list(rows) == list(range(len(tensor))):
        return tensor
    return tensor.index_select(0, to_device(rows, tensor.device))


def fill(target: torch.Tensor, values: Sequence[Any]) -> None:
    """Overwrite the whole of `target`, whose shape is that of `values`."""
    if target.device.type != "cuda":
        target.copy_(torch.tensor(values, dtype=target.dtype))
        return
    staged = torch.tensor(values, dtype=target.dtype, pin_memory=True)
    target.copy_(staged, non_blocking=True)


class Fetch:
    """A tensor on its way to the host. The copy is queued at once; `read` waits for it alone."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._ready: torch.cuda.Event | None = None
        self._host = tensor
        if tensor.device.type == "cuda":
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._ready.record(torch.cuda.current_stream(tensor.device))

    def read(self) -> Any:
        """The tensor's content as numbers, nested in lists as it has dimensions."""
        if self._ready is not None:
            self._ready.synchronize()
        return self._host.tolist()
