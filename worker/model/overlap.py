"""Runs steps of the paged engine without waiting for them.

What a step samples stays on the device, where the next step finds it; the host reads it later.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from typing import Any

import torch

from worker.engine.scheduler import Scheduled
from worker.engine.sequence import PENDING
from worker.engine.steps import RowResult
from worker.model.attention import PagedAttention, Span
from worker.model.border import border
from worker.model.graphs import DecodeGraphs
from worker.model.pick_torch import TorchPick
from worker.model.runner import ModelRunner, prompt_part, rows_to_keep
from worker.model.sampler import Draw, Pick
from worker.model.transfer import rows_of, to_device


class LaunchedStep:
    """A step under way.

    Args:
        results: one a batch entry, without what is sampled.
        sampling: the entries that sample.
        draw: their tokens, None when there are none.
        device: of the step.
    """

    def __init__(
        self,
        results: list[RowResult],
        sampling: SequenceOf[int],
        draw: Draw | None,
        device: torch.device,
    ) -> None:
        self._results, self._sampling, self._draw = results, sampling, draw
        self._device = device

    def results(self) -> list[RowResult]:
        """Wait for the step; one result a batch entry. Raises as `border` says."""
        with border(self._device):
            choices = self._draw.choices() if self._draw else []
        for number, choice in zip(self._sampling, choices, strict=True):
            self._results[number] = RowResult(
                choice.token_id,
                choice.logprob,
                self._results[number].prompt_logprobs,
                finite=choice.token_id is not None,
                late=choice.late,
                candidates=choice.candidates,
            )
        return self._results


class OverlapRunner(ModelRunner):
    """A `Launcher` over a model; as `ModelRunner`, for models on one device or several.

    Attributes:
        graphs: of decode steps; None to launch each operation.
    """

    def __init__(
        self,
        model: Any,
        attention: PagedAttention,
        device: torch.device,
        pick: Pick = TorchPick,
    ) -> None:
        super().__init__(model, attention, device, pick)
        self.graphs: DecodeGraphs | None = None
        self._tokens: torch.Tensor | None = None
        self._row_of: dict[int, int] = {}

    def run(self, batch: SequenceOf[Scheduled]) -> list[RowResult]:
        """Compute a step; one result a batch entry."""
        return self.launch(batch).results()

    @torch.inference_mode()
    def launch(self, batch: SequenceOf[Scheduled]) -> LaunchedStep:
        """Begin a step behind those launched before; `PENDING` is what the last one samples.

        Raises as `border` says; what the last one sampled is still there then.
        """
        with border(self._device):
            return self._launch(batch)

    def _launch(self, batch: SequenceOf[Scheduled]) -> LaunchedStep:
        rows, kept = rows_to_keep(batch)
        spans = [Span(item.start, item.num_new, item.seq.block_table) for item in batch]
        ids = self._ids(batch, spans)
        logits = None
        if self.graphs and len(kept) == len(ids) and all(span.is_decode for span in spans):
            logits = self.graphs.logits(ids, spans)
        if logits is None:
            logits = self._forward(ids, spans, kept)
        sampling = [number for number, item in enumerate(batch) if item.samples]
        seqs = [batch[number].seq for number in sampling]
        wanted = [rows[number][-1] for number in sampling]
        draw = Draw(rows_of(logits, wanted), seqs, self._pick) if wanted else None
        results = [
            RowResult(prompt_logprobs=prompt_part(item, logits, row))
            for item, row in zip(batch, rows, strict=True)
        ]
        if draw is not None:
            self._tokens = draw.tokens
        self._row_of = {id(seq): row for row, seq in enumerate(seqs)}
        return LaunchedStep(results, sampling, draw, self._device)

    def forward_decode(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Logits [1, rows, vocab] of ids and positions [1, rows], by the step planned."""
        found: torch.Tensor = self._model(
            input_ids=ids, position_ids=positions, use_cache=False
        ).logits
        return found

    def _ids(self, batch: SequenceOf[Scheduled], spans: SequenceOf[Span]) -> torch.Tensor:
        """The step's token ids [tokens], on the device."""
        ids: list[int] = []
        places: list[int] = []
        sources: list[int] = []
        for item, span in zip(batch, spans, strict=True):
            ids += item.seq.token_ids[span.start : span.end]
            if ids[-1] == PENDING:
                ids[-1] = 0
                places.append(len(ids) - 1)
                sources.append(self._row_of[id(item.seq)])
        made = to_device(ids, self._device)
        if places:
            assert self._tokens is not None
            found = rows_of(self._tokens, sources).to(self._device, non_blocking=True)
            if len(places) == len(ids):
                return found
            made.index_copy_(0, to_device(places, self._device), found)
        return made
