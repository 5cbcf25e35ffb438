"""Runs a step of the paged engine: batch entries -> flat tensors -> forward -> sampled tokens."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Sequence as SequenceOf
from typing import Any

import torch

from worker.engine.scheduler import Scheduled
from worker.engine.sequence import Sequence, ahead_of
from worker.engine.steps import RowResult, kept_of
from worker.model.attention import PagedAttention, Span
from worker.model.border import border
from worker.model.fused_layer import FusedModel
from worker.model.pick_torch import TorchPick
from worker.model.pooling import pooled
from worker.model.sampler import Choice, Pick, prompt_logprobs, sample
from worker.model.transfer import rows_of, to_device
from worker.sentence_files import Pooling

_CHECKED = (1, 1, 1, 1)


class ModelRunner:
    """A model with paged attention installed; `run` and what is for `EngineCore` beside it raise
    as `border` says.

    Args:
        model: a causal language model of transformers, in eval mode.
        attention: the paged attention that was installed in it.
        device: where its inputs go.
        pick: how tokens are chosen from logits.
    """

    def __init__(
        self,
        model: Any,
        attention: PagedAttention,
        device: torch.device,
        pick: Pick = TorchPick,
    ) -> None:
        self._pick = pick
        self._model = model
        self._attention = attention
        self._device = device
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters

    @property
    def is_native(self) -> bool:
        """Whether layers are computed by the engine's own kernels alone."""
        return isinstance(self._model, FusedModel) and self._model.stack is not None

    def replace_model(self, model: Any) -> None:
        """Run another form of the same model from now on."""
        self._model = model
        self._keeps = True

    @torch.inference_mode()
    def run(self, batch: SequenceOf[Scheduled]) -> list[RowResult]:
        """Compute a step; one result a batch entry."""
        with border(self._device):
            return self._run(batch)

    def _run(self, batch: SequenceOf[Scheduled]) -> list[RowResult]:
        rows, kept = rows_to_keep(batch)
        spans = [Span(item.start, item.num_new, item.seq.block_table) for item in batch]
        logits = self.logits([token for item in batch for token in item.token_ids()], spans, kept)
        wanted = [
            (row, ahead_of(item.seq, item.draft[:num]) if num else item.seq)
            for item, own in zip(batch, rows, strict=True)
            if item.samples
            for num, row in enumerate(own[-1 - len(item.draft) :])
        ]
        choices = iter(self._sample(logits, wanted) if wanted else ())
        results: list[RowResult] = []
        for item, own in zip(batch, rows, strict=True):
            scores = prompt_part(item, logits, own)
            if not item.samples:
                results.append(RowResult(prompt_logprobs=scores))
                continue
            found = [
                RowResult(
                    choice.token_id,
                    choice.logprob,
                    scores,
                    finite=choice.token_id is not None,
                    candidates=choice.candidates,
                )
                for choice in itertools.islice(choices, 1 + len(item.draft))
            ]
            results.append(kept_of(item.draft, found))
        return results

    def _sample(
        self, logits: torch.Tensor, wanted: SequenceOf[tuple[int, Sequence]]
    ) -> list[Choice]:
        """A token for each of these rows, by the sequence as it is there."""
        rows, seqs = zip(*wanted, strict=True)
        return sample(rows_of(logits, rows), seqs, self._pick)

    def check(self) -> None:
        """Run the model over a short text, storing nothing; raises when it does not work."""
        with border(self._device):
            last = len(_CHECKED) - 1
            self.logits(_CHECKED, [Span(0, len(_CHECKED), ())], [last]).tolist()

    @torch.inference_mode()
    def plain(self, token_ids: SequenceOf[int]) -> torch.Tensor:
        """Logits [tokens, vocab] of a text by the model as it is, without the paged attention."""
        ids = torch.tensor([list(token_ids)], device=self._device)
        return torch.as_tensor(self._model(input_ids=ids, use_cache=False).logits[0])

    @torch.inference_mode()
    def logits(
        self, token_ids: SequenceOf[int], spans: SequenceOf[Span], kept: SequenceOf[int]
    ) -> torch.Tensor:
        """One forward over a flat row; logits [len(kept), vocab] at the positions `kept` of it."""
        return self._forward(to_device(token_ids, self._device), spans, kept)

    def _forward(
        self, ids: torch.Tensor, spans: SequenceOf[Span], kept: SequenceOf[int]
    ) -> torch.Tensor:
        """As `logits`, of ids [tokens] on the device."""
        inputs = self._inputs(ids, spans)
        # at least one, so that a step without any does not compute them all
        keep = to_device(list(kept) or [0], self._device)
        if self._keeps:
            logits = self._model(**inputs, logits_to_keep=keep).logits[0]
        else:
            logits = self._model(**inputs).logits[0]
            logits = logits[keep.to(logits.device)]
        return torch.as_tensor(logits)[: len(kept)]

    @torch.inference_mode()
    def embed(
        self, inputs: SequenceOf[SequenceOf[int]], pooling: Pooling = "mean"
    ) -> list[list[float]]:
        """Vectors from the last hidden states, float32; nothing is stored in the pool."""
        spans = [Span(0, len(tokens), ()) for tokens in inputs]
        flat = [token for tokens in inputs for token in tokens]
        ids = to_device(flat, self._device)
        hidden = self._model.base_model(**self._inputs(ids, spans)).last_hidden_state[0]
        return pooled(hidden[: len(flat)].split([len(tokens) for tokens in inputs]), pooling)

    def allocate(self, num_blocks: int) -> None:
        """Make the KV pool, for the layers seen so far."""
        self._attention.backend.allocate(self._attention.layers, num_blocks)

    def clear(self, blocks: list[int]) -> None:
        """Zero the content of blocks."""
        with border(self._device):
            self._attention.backend.clear(blocks)

    @torch.inference_mode()
    def copy(self, pairs: SequenceOf[tuple[int, int]]) -> None:
        """Copy the content of the first block of each pair to the second."""
        with border(self._device):
            self._attention.backend.copy(pairs)

    def _inputs(self, ids: torch.Tensor, spans: SequenceOf[Span]) -> dict[str, Any]:
        self._attention.backend.plan(spans)
        positions = [pos for span in spans for pos in range(span.start, span.end)]
        return {
            "input_ids": ids[None],
            "position_ids": to_device(positions, self._device)[None],
            "use_cache": False,
        }


def rows_to_keep(batch: SequenceOf[Scheduled]) -> tuple[list[list[int]], list[int]]:
    """Which positions of the flat row need logits, and each entry's rows among those kept."""
    rows: list[list[int]] = []
    kept: list[int] = []
    offset = 0
    for item in batch:
        wanted = range(item.num_new if item.seq.scores_prompt else 0)
        if not wanted and item.samples:
            wanted = range(item.num_new - 1 - len(item.draft), item.num_new)
        rows.append(list(range(len(kept), len(kept) + len(wanted))))
        kept += [offset + at for at in wanted]
        offset += item.num_new
    return rows, kept


def prompt_part(item: Scheduled, logits: torch.Tensor, rows: SequenceOf[int]) -> SequenceOf[Any]:
    """Log probabilities of the prompt tokens after each computed one."""
    seq = item.seq
    if not seq.scores_prompt:
        return ()
    first = item.start + 1
    targets = seq.token_ids[first : min(first + item.num_new, seq.prompt_len)]
    top = seq.params.prompt_logprobs or 0
    return prompt_logprobs(logits[list(rows[: len(targets)])], targets, top) if targets else ()
