"""Paged attention from plain torch operations: the backend for the CPU, and wherever no other fits.

A layer's keys have the shape [kv_heads, num_blocks, block_size, head_dim], values likewise, so a
sequence's blocks gather into one contiguous run of tokens a head. Decode rows of similar length
are attended together: the query heads of a group become the rows of one small matrix product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

from worker.model.attention import LayerShapes, Score, Span


@dataclass(frozen=True, slots=True)
class _DecodeGroup:
    """Decode rows attended together.

    Attributes:
        rows: [n] in the flat row, or None when it holds nothing else.
        blocks: [n * m], the m blocks of each row, padded with one that is masked.
        bias: [n, 1, m * block_size], 0 or -inf.
    """

    rows: torch.Tensor | None
    blocks: torch.Tensor
    bias: torch.Tensor

    def moved(self, device: torch.device, dtype: torch.dtype, kv_heads: int) -> _DecodeGroup:
        """The same for a layer on `device`, with a bias [kv_heads * n, 1, columns]."""
        return _DecodeGroup(
            None if self.rows is None else self.rows.to(device),
            self.blocks.to(device),
            self.bias.to(device, dtype).repeat(kv_heads, 1, 1),
        )


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A prefill chunk: `part` of the row, and what it sees.

    Attributes:
        blocks: those to gather, from the first that is seen; None when all it sees is itself.
        held: columns of the gathered blocks that are in use.
        bias: [tokens, held], 0 or -inf; None for a causal triangle.
    """

    part: slice
    blocks: torch.Tensor | None
    held: int
    bias: torch.Tensor | None

    def moved(self, device: torch.device, dtype: torch.dtype) -> _Chunk:
        """The same for a layer on `device`."""
        return _Chunk(
            self.part,
            None if self.blocks is None else self.blocks.to(device),
            self.held,
            None if self.bias is None else self.bias.to(device, dtype),
        )


@dataclass(slots=True)
class StepPlan:
    """What a step's flat row holds; index tensors are made once a step, not once a layer.

    Args:
        by_rows: whether stored prefill chunks go with the decode rows.
    """

    spans: Sequence[Span]
    block_size: int
    by_rows: bool = False
    slots: torch.Tensor | None = None
    has_rows: bool = False
    _chunk_lists: dict[tuple[object, ...], list[_Chunk]] = field(default_factory=dict)
    _group_lists: dict[tuple[object, ...], list[_DecodeGroup]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.has_rows = any(map(self.goes_by_rows, self.spans))
        if self.spans and self.spans[0].blocks:
            size = self.block_size
            self.slots = torch.tensor(
                [
                    span.blocks[pos // size] * size + pos % size
                    for span in self.spans
                    for pos in range(span.start, span.end)
                ]
            )

    def goes_by_rows(self, span: Span) -> bool:
        """Whether it goes with the decode rows."""
        return span.is_decode or (self.by_rows and bool(span.blocks))

    def chunks(self, window: int | None, device: torch.device, dtype: torch.dtype) -> list[_Chunk]:
        """Prefill chunks, for a layer of this kind."""
        key = (window, device, dtype)
        if key not in self._chunk_lists:
            self._chunk_lists[key] = [chunk.moved(device, dtype) for chunk in self._chunks(window)]
        return self._chunk_lists[key]

    def groups(
        self, window: int | None, device: torch.device, dtype: torch.dtype, kv_heads: int
    ) -> list[_DecodeGroup]:
        """Decode rows in groups, for a layer of this kind."""
        key = (window, device, dtype, kv_heads)
        if key not in self._group_lists:
            self._group_lists[key] = [
                group.moved(device, dtype, kv_heads) for group in self._groups(window)
            ]
        return self._group_lists[key]

    def _chunks(self, window: int | None) -> list[_Chunk]:
        chunks: list[_Chunk] = []
        offset = 0
        for span in self.spans:
            if not self.goes_by_rows(span):
                chunks.append(self._chunk(span, slice(offset, offset + span.length), window))
            offset += span.length
        return chunks

    def _chunk(self, span: Span, part: slice, window: int | None) -> _Chunk:
        if span.start == 0 and (window is None or span.length <= window):
            return _Chunk(part, None, span.length, None)
        size = self.block_size
        first = 0 if window is None else max(0, span.start + 1 - window) // size
        used = list(span.blocks[first : -(-span.end // size)]) if span.start else []
        rows = torch.arange(span.start, span.end)[:, None]
        cols = torch.arange(first * size, span.end)[None, :]
        seen = cols <= rows
        if window is not None:
            seen &= cols > rows - window
        bias = torch.zeros(seen.shape).masked_fill_(~seen, float("-inf"))
        return _Chunk(part, torch.tensor(used) if used else None, seen.shape[1], bias)

    def _groups(self, window: int | None) -> list[_DecodeGroup]:
        """Decode rows, grouped so that no group is padded to more than about twice its tokens."""
        entries: list[tuple[int, int, Span]] = []  # (blocks to read, row, span)
        row = 0
        for span in self.spans:
            if span.is_decode:
                first = first_block(span, window, self.block_size)
                entries.append((-(-span.end // self.block_size) - first, row, span))
            row += span.length
        whole = len(entries) == row
        if whole and entries and max(entries)[0] <= 2 * min(entries)[0] + 4:
            return [self._group(entries, window, whole=True)]
        entries.sort(key=lambda entry: entry[0])
        groups: list[list[tuple[int, int, Span]]] = []
        for entry in entries:
            if groups and entry[0] <= 2 * groups[-1][0][0] + 4:
                groups[-1].append(entry)
            else:
                groups.append([entry])
        return [self._group(group, window, whole=False) for group in groups]

    def _group(
        self, group: list[tuple[int, int, Span]], window: int | None, *, whole: bool
    ) -> _DecodeGroup:
        size, width = self.block_size, max(count for count, _row, _span in group)
        table: list[int] = []
        lows, highs = [], []
        for count, _row, span in group:
            first = first_block(span, window, self.block_size)
            used = span.blocks[first : first + count]
            table += [*used, *[used[0]] * (width - count)]
            lows.append(0 if window is None else max(0, span.end - window) - first * size)
            highs.append(span.end - first * size)
        at = torch.arange(width * size)
        seen = (at >= torch.tensor(lows)[:, None]) & (at < torch.tensor(highs)[:, None])
        bias = torch.zeros(seen.shape).masked_fill_(~seen, float("-inf"))
        return _DecodeGroup(
            rows=None if whole else torch.tensor([row for _count, row, _span in group]),
            blocks=torch.tensor(table),
            bias=bias[:, None, :],
        )


def first_block(span: Span, window: int | None, block_size: int) -> int:
    """Index in its block table of the first block that a decode row sees."""
    return 0 if window is None else max(0, span.end - window) // block_size


class GatherAttention:
    """The KV pool and attention over it by plain operations, on whatever devices the layers are."""

    def __init__(self, block_size: int = 16) -> None:
        self.block_size = block_size
        self._keys: dict[int, torch.Tensor] = {}
        self._values: dict[int, torch.Tensor] = {}
        self._plan = StepPlan((), block_size)

    def allocate(self, layers: LayerShapes, num_blocks: int) -> None:
        """Keys and values of each layer, [kv_heads, num_blocks, block_size, dim]."""
        self._keys, self._values = {}, {}  # before the new ones: both may not fit
        for index, (shape, device, dtype) in layers.items():
            head = (shape.kv_heads, num_blocks, self.block_size)
            self._keys[index] = _zeros((*head, shape.key_dim), device, dtype)
            self._values[index] = _zeros((*head, shape.value_dim), device, dtype)

    def clear(self, blocks: Sequence[int]) -> None:
        """Zero the content of `blocks`."""
        for pool in (*self._keys.values(), *self._values.values()):
            pool[:, list(blocks)] = 0

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """As `AttentionBackend.copy`."""
        sources, targets = ([pair[at] for pair in pairs] for at in (0, 1))
        for pool in (*self._keys.values(), *self._values.values()):
            pool[:, targets] = pool[:, sources]

    def plan(self, spans: Sequence[Span]) -> None:
        """Prepare a step."""
        self._plan = StepPlan(spans, self.block_size)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        score: Score,
        out: torch.Tensor,
    ) -> None:
        """As `AttentionBackend.attend`."""
        if self._plan.slots is not None:
            self._store(layer, key, value, self._plan.slots)
        for chunk in self._plan.chunks(score.window, key.device, key.dtype):
            part = chunk.part
            if chunk.blocks is None:
                keys, values = key[part].transpose(0, 1), value[part].transpose(0, 1)
            else:
                keys, values = self._gather(layer, chunk.blocks, 1)
                keys, values = keys[:, : chunk.held], values[:, : chunk.held]
            out[part] = _attend_chunk(query[part], keys, values, chunk.bias, score)
        if self._plan.has_rows:
            self._attend_rows(layer, query, score, out)

    def _store(
        self, layer: int, key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor
    ) -> None:
        slots = slots.to(key.device)
        self._keys[layer].flatten(1, 2).index_copy_(1, slots, key.transpose(0, 1))
        self._values[layer].flatten(1, 2).index_copy_(1, slots, value.transpose(0, 1))

    def _attend_rows(
        self, layer: int, query: torch.Tensor, score: Score, out: torch.Tensor
    ) -> None:
        kv_heads = self._keys[layer].shape[0]
        for group in self._plan.groups(score.window, query.device, query.dtype, kv_heads):
            keys, values = self._gather(layer, group.blocks, group.bias.shape[0] // kv_heads)
            if group.rows is None:
                _attend_decode(query, keys, values, group.bias, score, out)
            else:
                found = out.new_empty((len(group.rows), *out.shape[1:]))
                rows = query.index_select(0, group.rows)
                _attend_decode(rows, keys, values, group.bias, score, found)
                out.index_copy_(0, group.rows, found)

    def _gather(
        self, layer: int, blocks: torch.Tensor, num_seqs: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of `blocks`, each [kv_heads * num_seqs, tokens, dim]."""
        keys, values = self._keys[layer], self._values[layer]
        shape = (keys.shape[0] * num_seqs, -1)
        return (
            keys.index_select(1, blocks).view(*shape, keys.shape[-1]),
            values.index_select(1, blocks).view(*shape, values.shape[-1]),
        )


def _zeros(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Zeros that take no main memory before they are written: `torch.zeros` touches all of them."""
    if device.type != "cpu":
        return torch.zeros(shape, device=device, dtype=dtype)
    untouched = np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(untouched).view(dtype).view(shape)


def _attend_decode(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor,
    score: Score,
    out: torch.Tensor,
) -> None:
    """One query token a sequence.

    `scaled_dot_product_attention` takes 2 to 17 times as long here (few rows, a bias).

    Args:
        query: [n, heads, dim]; keys, values: [kv_heads * n, columns, dim].
        bias: [kv_heads * n, 1, columns].
        out: [n, heads, value_dim], written.
    """
    num, heads, dim = query.shape
    kv_heads = keys.shape[0] // num
    rows = query.reshape(num, kv_heads, heads // kv_heads, dim).transpose(0, 1).flatten(0, 1)
    weights = _weights(rows, keys.transpose(1, 2), bias, score)
    found = torch.bmm(weights, values).view(kv_heads, num, heads // kv_heads, -1)
    out.view(num, kv_heads, heads // kv_heads, -1).copy_(found.transpose(0, 1))


def _attend_chunk(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor | None,
    score: Score,
) -> torch.Tensor:
    """A run of tokens of one sequence: [tokens, heads, value_dim].

    Args:
        query: [tokens, heads, dim]; keys, values: [kv_heads, columns, dim].
        bias: [tokens, columns]; None for a causal triangle.
    """
    tokens, heads, _dim = query.shape
    group = heads // keys.shape[0]
    rows = query.transpose(0, 1)
    if score.softcap:
        if bias is None:
            bias = torch.full((tokens, tokens), float("-inf"), device=query.device).triu_(1)
        spread = keys.repeat_interleave(group, 0).transpose(1, 2)
        weights = _weights(rows, spread, bias, score)
        return torch.bmm(weights, values.repeat_interleave(group, 0)).transpose(0, 1)
    return (
        F.scaled_dot_product_attention(
            rows.reshape(-1, group, *rows.shape[1:]),
            keys[:, None].expand(-1, group, -1, -1),
            values[:, None].expand(-1, group, -1, -1),
            attn_mask=bias,
            is_causal=bias is None,
            scale=score.scale,
        )
        .flatten(0, 1)
        .transpose(0, 1)
    )


def _weights(
    rows: torch.Tensor, keys: torch.Tensor, bias: torch.Tensor, score: Score
) -> torch.Tensor:
    """Softmax of the scores of `rows` [b, r, dim] and `keys` [b, dim, columns] plus `bias`."""
    if not score.softcap:
        scores = torch.baddbmm(bias.to(rows.dtype), rows, keys, alpha=score.scale)
        return torch.softmax(scores, -1)  # sums in float32, whatever the dtype
    scores = torch.bmm(rows, keys).float() * score.scale
    scores = score.softcap * torch.tanh(scores / score.softcap) + bias
    return torch.softmax(scores, -1).to(rows.dtype)
