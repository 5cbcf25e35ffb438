"""Encoder models: padded batches of texts in, one vector each out; of pairs, one score each."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any, Final

import torch

from worker.engine.protocol import ModelLoadError, Pair
from worker.model.loader import LoadedModel
from worker.model.pooling import pooled
from worker.model.scores import activation_of

BATCH_TOKENS_CPU: Final = 2048
BATCH_TOKENS_GPU: Final = 16_384


class Encoder:
    """Embeds token ids, or scores pairs where the model is a cross-encoder.

    Args:
        loaded: an encoder or a cross-encoder.

    Raises:
        ModelLoadError: when a short batch fails, as it does where a model wants more than texts.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._model = loaded.model
        config = loaded.model.config
        self._pad_id = getattr(config.get_text_config(), "pad_token_id", None)
        known = inspect.signature(loaded.model.forward).parameters
        kinds = getattr(config, "type_vocab_size", None) or 0
        self._takes_types = "token_type_ids" in known and kinds > 1
        self._activation = activation_of(config)
        self._warm_up()

    @torch.inference_mode()
    def embed(self, inputs: Sequence[Sequence[int]]) -> list[list[float]]:
        """Pooled last hidden states, float32, not normalised."""
        states = self._run([list(tokens) for tokens in inputs], None).last_hidden_state
        parts = [row[: len(tokens)] for row, tokens in zip(states, inputs, strict=True)]
        return pooled(parts, self._loaded.pooling)

    @torch.inference_mode()
    def score(self, pairs: Sequence[Pair]) -> list[list[float]]:
        """One number a pair: the activation of the model's one logit."""
        if self._pad_id is None and len(pairs) > 1:  # the model could not tell where a row ends
            return [score for pair in pairs for score in self.score([pair])]
        types = None
        if self._takes_types:
            types = [[0] * pair.first + [1] * (len(pair.ids) - pair.first) for pair in pairs]
        logits = self._run([pair.ids for pair in pairs], types).logits
        scores: list[list[float]] = self._activation(logits.float()).tolist()
        return scores

    def _run(self, inputs: list[list[int]], types: list[list[int]] | None) -> Any:
        """One forward over rows that are padded to the longest."""
        longest = max(map(len, inputs))

        def padded(rows: list[list[int]], filler: int) -> torch.Tensor:
            filled = [row + [filler] * (longest - len(row)) for row in rows]
            return torch.tensor(filled, device=self._loaded.device)

        given = {"input_ids": padded(inputs, self._pad_id or 0)}
        if types is not None:
            given["token_type_ids"] = padded(types, 0)
        mask = padded([[1] * len(row) for row in inputs], 0)
        return self._model(**given, attention_mask=mask)

    def _warm_up(self) -> None:
        # ids above those that are padding in any tokenizer
        rows = [[min(5, self._loaded.vocab_size - 1)] * length for length in (4, 2)]
        try:
            if self._loaded.kind == "cross_encoder":
                found = self.score([Pair(row, 1) for row in rows])
            else:
                found = self.embed(rows)
        except Exception as error:  # transformers raises what it likes
            reason = " ".join(str(error).split())[:200]
            raise ModelLoadError(
                f"the model {type(self._model).__name__} does not run on texts alone: "
                f"{type(error).__name__}: {reason}"
            ) from error
        if not all(math.isfinite(value) for row in found for value in row):
            raise ModelLoadError(f"the model {type(self._model).__name__} gives no finite numbers")
