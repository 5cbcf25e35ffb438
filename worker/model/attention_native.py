"""Paged attention on the CPU with the engine's own kernels: decode rows and small prefill chunks
read their blocks in place. Large chunks go the way of `GatherAttention`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from worker.model.attention import LayerShapes, Score, Span
from worker.model.attention_gather import GatherAttention, StepPlan
from worker.model.kernels import AttendCall, KernelSet


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows that are attended alone, as the kernel wants them, int32; kept while `call` is used.

    Attributes:
        rows: [n], where they are in the flat row.
        table: [n, most blocks].
        first, end: [n], the positions that each sees.
    """

    rows: torch.Tensor
    table: torch.Tensor
    first: torch.Tensor
    end: torch.Tensor
    call: AttendCall

    @classmethod
    def of(cls, plan: StepPlan, window: int | None) -> _Rows:
        size, at = plan.block_size, 0
        rows: list[int] = []
        ends: list[int] = []
        used: list[Sequence[int]] = []
        for span in plan.spans:
            if plan.goes_by_rows(span):
                rows += range(at, at + span.length)
                ends += range(span.start + 1, span.end + 1)
                used += [span.blocks[: -(-span.end // size)]] * span.length
            at += span.length
        width = max(map(len, used))
        made = cls(
            rows=_int32(rows),
            table=_int32([[*blocks, *[0] * (width - len(blocks))] for blocks in used]),
            first=_int32([0 if window is None else max(0, end - window) for end in ends]),
            end=_int32(ends),
            call=AttendCall(num=len(rows), table_width=width, block_size=size),
        )
        call = made.call
        call.rows, call.table = made.rows.data_ptr(), made.table.data_ptr()
        call.first, call.end = made.first.data_ptr(), made.end.data_ptr()
        return made


def _int32(values: Sequence[int] | Sequence[Sequence[int]]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


class NativeAttention(GatherAttention):
    """`GatherAttention` on the CPU, where single rows take no gathering.

    A layer's keys have the shape [kv_heads, num_blocks, head_dim, block_size] here, so that the
    scores of a block are sums over whole vectors.

    Args:
        rows_below: prefill chunks with fewer scores are faster row by row.
    """

    def __init__(
        self, kernels: KernelSet, block_size: int = 16, *, rows_below: int = 128 * 128
    ) -> None:
        super().__init__(block_size)
        self._kernels = kernels
        self._rows_below = rows_below
        self._rows: dict[int | None, _Rows] = {}

    def allocate(self, layers: LayerShapes, num_blocks: int) -> None:
        """Make the pool, with the keys of each block transposed."""
        super().allocate(layers, num_blocks)
        for index, keys in self._keys.items():
            heads, blocks, size, dim = keys.shape
            self._keys[index] = keys.view(heads, blocks, dim, size)

    def plan(self, spans: Sequence[Span]) -> None:
        """Prepare a step."""
        self._plan = StepPlan(spans, self.block_size, rows_below=self._rows_below)
        self._rows = {}

    def _store(
        self, layer: int, key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor
    ) -> None:
        kernels = self._kernels[key.dtype]
        kernels.put_keys(_dense(key), self._keys[layer], slots)
        kernels.put_values(_dense(value), self._values[layer], slots)

    def _gather(
        self, layer: int, blocks: torch.Tensor, num_seqs: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self._keys[layer], self._values[layer]
        found = keys.index_select(1, blocks).transpose(2, 3)
        shape = (keys.shape[0] * num_seqs, -1)
        return (
            found.reshape(*shape, keys.shape[2]),
            values.index_select(1, blocks).view(*shape, values.shape[3]),
        )

    def _attend_rows(
        self, layer: int, query: torch.Tensor, score: Score, out: torch.Tensor
    ) -> None:
        if score.window not in self._rows:
            self._rows[score.window] = _Rows.of(self._plan, score.window)
        keys, values = self._keys[layer], self._values[layer]
        query = _dense(query)
        call = self._rows[score.window].call
        call.query, call.out = query.data_ptr(), out.data_ptr()
        call.keys, call.values = keys.data_ptr(), values.data_ptr()
        call.heads, call.kv_heads = query.shape[1], keys.shape[0]
        call.dim, call.value_dim, call.num_blocks = keys.shape[2], values.shape[3], keys.shape[1]
        call.query_row, call.query_head = query.stride()[:2]
        call.out_row, call.out_head = out.stride()[:2]
        call.scale, call.softcap = score.scale, score.softcap or 0.0
        self._kernels[keys.dtype].attend(call)


def _dense(rows: torch.Tensor) -> torch.Tensor:
    """The same rows with a dense last dimension."""
    return rows if rows.stride(-1) == 1 else rows.contiguous()
