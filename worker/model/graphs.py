"""Decode steps as CUDA graphs: the host launches a whole forward at once, not its operations.

A graph is recorded for a number of rows and a shape of the attention's tensors, at the start or
when it is needed first; steps with fewer rows are padded. All graphs share one memory pool and
write their logits to one tensor, which is valid until the next step.
"""

from __future__ import annotations

import bisect
import logging
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Final, Protocol

import torch

from worker.model.attention import Span
from worker.model.transfer import fill

log = logging.getLogger(__name__)

ROWS: Final = (1, 2, 4, *range(8, 257, 8))
"""Numbers of rows that graphs are recorded for."""


class DecodeBackend(Protocol):
    """What a graph needs of the attention."""

    def decode_shape(self, spans: Sequence[Span], rows: int) -> Hashable:
        """The shape of a step of decode rows, padded to `rows`; `spans` may be none at all."""

    def plan_decode(self, spans: Sequence[Span], shape: Any) -> None:
        """Prepare the step, in tensors that are the same for all steps of its shape."""


class Recorder(Protocol):
    """Makes a function of tensors that stay where they are into one that is cheap to launch."""

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        """Record `run`, which has been called before, without carrying it out."""


class CudaRecorder:
    """Records CUDA graphs on `device`, in one memory pool."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        # a recording that fails would leave its own stream current
        with (
            torch.cuda.device(self._device),
            torch.cuda.stream(torch.cuda.current_stream(self._device)),
            torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"),
        ):
            run()
        return graph.replay


class DecodeGraphs:
    """The graphs of one model on one device.

    Args:
        forward: logits [1, rows, vocab] of ids and positions [1, rows] each, by the step planned.
        backend: its attention.
        device: where all of it is.
        max_rows: most rows of a step.
        recorder: makes graphs.
    """

    def __init__(
        self,
        forward: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        backend: DecodeBackend,
        device: torch.device,
        max_rows: int,
        recorder: Recorder,
    ) -> None:
        self._forward = forward
        self._backend = backend
        self._recorder = recorder
        self._rows = [rows for rows in ROWS if rows < max_rows]
        self._rows.append(min(row for row in (*ROWS, max_rows) if row >= max_rows))
        self._rows = [rows for rows in self._rows if rows <= ROWS[-1]]
        self._ids = torch.zeros((1, self._rows[-1]), dtype=torch.long, device=device)
        self._positions = torch.zeros((1, self._rows[-1]), dtype=torch.long, device=device)
        self._logits: torch.Tensor | None = None
        self._graphs: dict[Hashable, Callable[[], None]] = {}
        self._works = True

    @torch.inference_mode()
    def warm_up(self, report: Callable[[str], None]) -> None:
        """Record a graph for each number of rows, the largest first, for short sequences."""
        for number, rows in enumerate(reversed(self._rows)):
            if not self._works:
                return
            report(f"recording CUDA graphs {100 * number // len(self._rows)}%")
            self._run([], rows)

    def logits(self, ids: torch.Tensor, spans: Sequence[Span]) -> torch.Tensor | None:
        """A step of decode rows: logits [rows, vocab], valid until the next step.

        Args:
            ids: [rows], on the device.
            spans: of decode rows only.

        Returns:
            None where the step must be run otherwise: too many rows, or no graphs for this model.
        """
        if not self._works or len(spans) > self._rows[-1]:
            return None
        rows = self._rows[bisect.bisect_left(self._rows, len(spans))]
        self._ids[0, : len(spans)].copy_(ids)
        fill(self._positions[0, :rows], [span.start for span in spans] + [0] * (rows - len(spans)))
        return self._run(spans, rows)

    def _run(self, spans: Sequence[Span], rows: int) -> torch.Tensor | None:
        shape = self._backend.decode_shape(spans, rows)
        self._backend.plan_decode(spans, shape)
        replay = self._graphs.get(shape)
        if replay is not None:
            replay()
        else:
            self._step(rows)  # outside a graph: what is made at first use must be there before
            self._record(shape, rows)
        return None if self._logits is None else self._logits[: len(spans)]

    def _step(self, rows: int) -> None:
        found = self._forward(self._ids[:, :rows], self._positions[:, :rows])[0]
        if self._logits is None:
            self._logits = found.new_zeros((self._rows[-1], found.shape[-1]))
        self._logits[:rows].copy_(found[:rows])  # a layer may have padded them

    def _record(self, shape: Hashable, rows: int) -> None:
        try:
            self._graphs[shape] = self._recorder(lambda: self._step(rows))
        except RuntimeError as error:
            self._works = False
            self._graphs.clear()
            reason = " ".join(str(error).split())[:200]
            log.warning("no CUDA graphs for this model: %s: %s", type(error).__name__, reason)
