"""From the states of an input's tokens to one vector."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from worker.sentence_files import Pooling


def pooled(parts: Sequence[torch.Tensor], pooling: Pooling) -> list[list[float]]:
    """One vector an input, float32, not normalised.

    Args:
        parts: the last layer's states [tokens, size] of each input, without padding.
    """
    return torch.stack([_pool(part.float(), pooling) for part in parts]).tolist()


def _pool(states: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    match pooling:
        case "mean":
            return states.mean(0)
        case "cls":
            return states[0]
        case "last":
            return states[-1]
        case "max":
            return states.amax(0)
