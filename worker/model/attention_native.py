"""Paged attention on the CPU with the engine's own kernels: decode rows read their blocks in place.

Prefill chunks go the way of `GatherAttention`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from worker.model.attention import LayerShapes, Score, Span
from worker.model.attention_gather import GatherAttention
from worker.model.kernels import AttendCall, KernelSet


@dataclass(frozen=True, slots=True)
class _DecodeRows:
    """A step's decode rows as the kernel wants them, int32; kept for as long as `call` is used.

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
    def of(cls, spans: Sequence[Span], window: int | None, block_size: int) -> _DecodeRows:
        rows, at = [], 0
        decodes = [span for span in spans if span.is_decode]
        for span in spans:
            if span.is_decode:
                rows.append(at)
            at += span.length
        used = [span.blocks[: -(-span.end // block_size)] for span in decodes]
        width = max(map(len, used))
        made = cls(
            rows=_int32(rows),
            table=_int32([[*blocks, *[0] * (width - len(blocks))] for blocks in used]),
            first=_int32([0 if window is None else max(0, span.end - window) for span in decodes]),
            end=_int32([span.end for span in decodes]),
            call=AttendCall(num=len(rows), table_width=width, block_size=block_size),
        )
        call = made.call
        call.rows, call.table = made.rows.data_ptr(), made.table.data_ptr()
        call.first, call.end = made.first.data_ptr(), made.end.data_ptr()
        return made


def _int32(values: Sequence[int] | Sequence[Sequence[int]]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


class NativeAttention(GatherAttention):
    """`GatherAttention` on the CPU, whose decode rows take no gathering.

    A layer's keys have the shape [kv_heads, num_blocks, head_dim, block_size] here, so that the
    scores of a block are sums over whole vectors.
    """

    def __init__(self, kernels: KernelSet, block_size: int = 16) -> None:
        super().__init__(block_size)
        self._kernels = kernels
        self._rows: dict[int | None, _DecodeRows] = {}

    def allocate(self, layers: LayerShapes, num_blocks: int) -> None:
        """Make the pool, with the keys of each block transposed."""
        super().allocate(layers, num_blocks)
        for index, keys in self._keys.items():
            heads, blocks, size, dim = keys.shape
            self._keys[index] = keys.view(heads, blocks, dim, size)

    def plan(self, spans: Sequence[Span]) -> None:
        """Prepare a step."""
        super().plan(spans)
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

    def _attend_decodes(
        self, layer: int, query: torch.Tensor, score: Score, out: torch.Tensor
    ) -> None:
        if score.window not in self._rows:
            self._rows[score.window] = _DecodeRows.of(
                self._plan.spans, score.window, self.block_size
            )
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
