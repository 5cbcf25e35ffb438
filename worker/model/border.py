"""The border to torch: what it raises becomes an error of the engine's own, where it means one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

import torch

from worker.engine.faults import EngineBroken, OutOfMemory

_Given = TypeVar("_Given")
_Found = TypeVar("_Found")

_NO_MEMORY: Final = ("out of memory", "allocate memory", "not enough memory", "bad_alloc")
_NO_MEMORY_STATUS: Final = "ALLOC_FAILED"


@contextmanager
def border(device: torch.device) -> Iterator[None]:
    """Around anything that is computed on `device`.

    Raises:
        OutOfMemory: there was no memory for it.
        EngineBroken: the device fails whatever it is asked: an error of CUDA stays with a process.
    """
    try:
        yield
    except (OutOfMemory, EngineBroken):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise OutOfMemory from error
        if device.type == "cuda":
            _require_working(device)
        raise


def within(device: torch.device, compute: Callable[[_Given], _Found]) -> Callable[[_Given], _Found]:
    """`compute` inside of the border."""

    def run(given: _Given) -> _Found:
        with border(device):
            return compute(given)

    return run


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory, of the host or of a device, was too small; torch says so in many ways."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        _NO_MEMORY_STATUS in text or any(words in text.lower() for words in _NO_MEMORY)
    )


def _require_working(device: torch.device) -> None:
    """Raises `EngineBroken` when a device can be used no more."""
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise EngineBroken(f"{device} can be used no more: {reason}") from error
