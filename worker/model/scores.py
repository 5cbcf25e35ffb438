"""From a cross-encoder's logit to its score."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch

from worker.engine.protocol import ModelLoadError

_SIGMOID: Final = "torch.nn.modules.activation.Sigmoid"
_ACTIVATIONS: Final[dict[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    _SIGMOID: torch.sigmoid,
    "torch.nn.modules.linear.Identity": torch.clone,
}


def activation_of(hf_config: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """What sentence-transformers applies: the sigmoid, unless the configuration names another.

    Raises:
        ModelLoadError: it names one that is not known here.
    """
    newer = getattr(hf_config, "sentence_transformers", None) or {}
    older = getattr(hf_config, "sbert_ce_default_activation_function", None)
    named = newer.get("activation_fn") or older or _SIGMOID
    if named not in _ACTIVATIONS:
        raise ModelLoadError(f"the activation {named} of this cross-encoder is not supported")
    return _ACTIVATIONS[named]


def check_scores(hf_config: Any) -> None:
    """Whether a classifier can score pairs.

    Raises:
        ModelLoadError: it has several labels, or an activation that is not known here.
    """
    labels = int(hf_config.num_labels)
    if labels != 1:
        raise ModelLoadError(
            f"a classifier with {labels} labels cannot be served: scores need one with 1 label"
        )
    activation_of(hf_config)
