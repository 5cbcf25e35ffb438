"""Paged attention on the CPU with the engine's own kernels, which read the blocks in place.

What is stored nowhere goes the way of `GatherAttention`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch

from worker.model.attention import LayerShapes, Score, Span
from worker.model.attention_gather import GatherAttention, StepPlan
from worker.model.kernels import AttendCall, KernelSet

_MOST_ROWS: Final = 16
_SCRATCH: Final = 128 * 1024
"""Scores of a task, float32, that stay in a core's cache."""


@dataclass(frozen=True, slots=True)
class _Tasks:
    """A step's rows as the kernel wants them, int32; kept while `call` is used.

    Attributes:
        first, count: [n], consecutive rows of one sequence: where in the flat row, how many.
        end: [n], the positions that the first of them sees.
        table: [n, most blocks].
    """

    first: torch.Tensor
    count: torch.Tensor
    end: torch.Tensor
    table: torch.Tensor
    call: AttendCall

    @classmethod
    def of(cls, plan: StepPlan, window: int | None, group: int) -> _Tasks:
        """Cut into tasks; `group` query heads share a key head."""
        size, at = plan.block_size, 0
        parts: list[tuple[int, int, int]] = []
        used: list[Sequence[int]] = []
        for span in plan.spans:
            if plan.goes_by_rows(span):
                seen = span.end if window is None else min(span.end, window)
                height = max(1, min(_MOST_ROWS, _SCRATCH // (group * seen)))
                blocks = span.blocks[: -(-span.end // size)]
                for row in range(0, span.length, height):
                    count = min(height, span.length - row)
                    parts.append((at + row, count, span.start + row + 1))
                    used.append(blocks)
            at += span.length
        width = max(map(len, used))
        first, counts, end = (_int32(column) for column in zip(*parts, strict=True))
        table = _int32([[*blocks, *[0] * (width - len(blocks))] for blocks in used])
        call = AttendCall(num=len(parts), table_width=width, block_size=size, window=window or 0)
        call.first, call.count = first.data_ptr(), counts.data_ptr()
        call.end, call.table = end.data_ptr(), table.data_ptr()
        return cls(first, counts, end, table, call)


def _int32(values: Sequence[int] | Sequence[Sequence[int]]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


class NativeAttention(GatherAttention):
    """`GatherAttention` on the CPU, without the gathering.

    A layer's keys have the shape [kv_heads, num_blocks, head_dim, block_size] here, so that the
    scores of a block are sums over whole vectors.
    """

    def __init__(self, kernels: KernelSet, block_size: int = 16) -> None:
        super().__init__(block_size)
        self._kernels = kernels
        self._tasks: dict[tuple[int | None, int], _Tasks] = {}

    def allocate(self, layers: LayerShapes, num_blocks: int) -> None:
        """Make the pool, with the keys of each block transposed."""
        super().allocate(layers, num_blocks)
        for index, keys in self._keys.items():
            heads, blocks, size, dim = keys.shape
            self._keys[index] = keys.view(heads, blocks, dim, size)

    def plan(self, spans: Sequence[Span]) -> None:
        """Prepare a step."""
        self._plan = StepPlan(spans, self.block_size, by_rows=True)
        self._tasks = {}

    @property
    def stores_all(self) -> bool:
        """Whether all tokens of the step have a place in the pool."""
        return self._plan.slots is not None

    @property
    def slots(self) -> torch.Tensor:
        """Places of the step's tokens in the pool, [tokens], int64; only if it `stores_all`."""
        assert self._plan.slots is not None
        return self._plan.slots

    def pool(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A layer's keys [kv_heads, num_blocks, head_dim, block_size] and values [kv_heads,
        num_blocks, block_size, head_dim]."""
        return self._keys[layer], self._values[layer]

    def tasks(self, window: int | None, group: int) -> AttendCall:
        """The step's rows for layers of this window whose key heads are shared by `group` query
        heads; what else there is to a call is the layer's. Valid until the next plan."""
        kind = window, group
        if kind not in self._tasks:
            self._tasks[kind] = _Tasks.of(self._plan, window, group)
        return self._tasks[kind].call

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
        keys, values = self._keys[layer], self._values[layer]
        query = _dense(query)
        call = self.tasks(score.window, query.shape[1] // keys.shape[0])
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
