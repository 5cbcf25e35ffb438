"""Paged attention by torch's own flash attention, `torch.nn.attention.varlen.varlen_attn`.

A layer's keys have the shape [pages, page size, kv_heads, head_dim], values likewise; the last
page is nobody's, padding rows of a decode step write there. A step's leading decode rows are one
call, whatever follows is another: with one query row a sequence and grouped heads the kernel reads
each key once for a whole group, and may share long sequences among more processors.

What the kernel in torch (flash attention 2) asks for, read from its sources and issues:

- pages of a multiple of 256 tokens; float16 or bfloat16; heads of at most 256 dimensions, a
  multiple of 8; the same for values; compute capability 8.0;
- masks are aligned at the last query and the last key, and a window (left, 0) sees `left` tokens
  besides the own one;
- only calls with one query row a sequence, grouped heads and no window at all may split keys: with
  pages, `num_splits` other than 1 leaves rows unwritten everywhere else
  (pytorch/pytorch#194167, Dao-AILab/flash-attention#2550);
- `varlen_attn_out` is not used: for such calls the kernel reshapes the output first, which copies.

torch 2.11 has no pages there. The keys of a step are gathered into one run of tokens then, in
every layer; that costs two more passes over them.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import torch

from worker.model.attention import LayerShapes, Score, Span, UnsupportedAttention
from worker.model.transfer import fill, to_device

log = logging.getLogger(__name__)

PAGE_SIZE: Final = 256
_MAX_DIM: Final = 256
_LEAST_CAPACITY: Final = 4096

Kernel: TypeAlias = Callable[..., torch.Tensor]


@dataclass(frozen=True, slots=True)
class Mode:
    """How the kernel is called.

    Attributes:
        paged: it reads pages itself.
        splits: it takes `num_splits`.
    """

    paged: bool = True
    splits: bool = True


MODES: Final = (Mode(), Mode(splits=False), Mode(paged=False, splits=False))
"""Best first."""


@dataclass(frozen=True, slots=True)
class DecodeShape:
    """Sizes of a decode step's tensors; steps of one shape differ in the tensors' content only.

    Attributes:
        rows: sequences. width: pages of the block table. capacity: tokens gathered, 0 if none are.
    """

    rows: int
    width: int
    capacity: int = 0


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows of a step that are attended in one call; n sequences.

    Attributes:
        rows: of the flat row.
        cu_q, cu_k: [n + 1], int32, where each sequence's queries and keys begin.
        max_q, max_k: bounds of their lengths.
        used, table: [n] and [n, width], int32; None where the step's own keys are all there is.
        index: [tokens], the slots to gather; None where the kernel reads pages.
    """

    rows: slice
    cu_q: torch.Tensor
    cu_k: torch.Tensor
    max_q: int
    max_k: int
    used: torch.Tensor | None = None
    table: torch.Tensor | None = None
    index: torch.Tensor | None = None

    @property
    def is_decode(self) -> bool:
        """Whether each sequence has one query row, which sees all of its keys."""
        return self.max_q == 1 and self.table is not None


@dataclass(frozen=True, slots=True)
class _Plan:
    """A step on one device: where its keys go, and how it is attended."""

    slots: torch.Tensor | None
    parts: Sequence[_Part]


class VarlenAttention:
    """The KV pool, and flash attention over it.

    Args:
        kernel: called as `varlen_attn` is.
        mode: how.
    """

    def __init__(self, kernel: Kernel, mode: Mode = MODES[0]) -> None:
        self.block_size = PAGE_SIZE
        self._kernel = kernel
        self._mode = mode
        self._keys: dict[int, torch.Tensor] = {}
        self._values: dict[int, torch.Tensor] = {}
        self._scratch = 0
        self._spans: Sequence[Span] = ()
        self._plans: dict[torch.device, _Plan] = {}
        self._decode: _DecodeBuffers | None = None

    def allocate(self, layers: LayerShapes, num_blocks: int) -> None:
        """Keys and values of each layer, and one page more."""
        self._keys, self._values = {}, {}  # before the new ones: both may not fit
        self._scratch = num_blocks
        for index, (shape, device, dtype) in layers.items():
            if shape.key_dim != shape.value_dim:
                raise UnsupportedAttention("flash attention with keys and values of two sizes")
            size = (num_blocks + 1, PAGE_SIZE, shape.kv_heads, shape.key_dim)
            self._keys[index] = torch.zeros(size, device=device, dtype=dtype)
            self._values[index] = torch.zeros(size, device=device, dtype=dtype)

    def clear(self, blocks: Sequence[int]) -> None:
        """Zero the content of `blocks`."""
        if not blocks:
            return
        for pool in (*self._keys.values(), *self._values.values()):
            pool.index_fill_(0, to_device(blocks, pool.device), 0)

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """As `AttentionBackend.copy`."""
        sources, targets = ([pair[at] for pair in pairs] for at in (0, 1))
        for pool in (*self._keys.values(), *self._values.values()):
            content = pool.index_select(0, to_device(sources, pool.device))
            pool.index_copy_(0, to_device(targets, pool.device), content)

    def plan(self, spans: Sequence[Span]) -> None:
        """Prepare a step."""
        self._spans, self._plans = spans, {}

    def reserve_decode(self, max_rows: int, max_tokens: int, device: torch.device) -> None:
        """Make the tensors that decode steps of fixed shapes read.

        Args:
            max_rows: most sequences. max_tokens: most tokens of one of them.
        """
        width = _pages(max_tokens)
        self._decode = _DecodeBuffers(max_rows, width, device, packed=not self._mode.paged)

    def decode_shape(self, spans: Sequence[Span], rows: int) -> DecodeShape:
        """The shape of a step of decode rows, padded to `rows`: a few for all lengths."""
        assert self._decode is not None, "nothing reserved"
        if self._mode.paged:
            width, most = 4, max((_pages(span.end) for span in spans), default=1)
            while width < most:
                width *= 4
            return DecodeShape(rows, min(width, self._decode.max_width))
        capacity, total = _LEAST_CAPACITY, sum(span.end for span in spans) + rows - len(spans)
        while capacity < total:
            capacity *= 2
        return DecodeShape(rows, self._decode.max_width, capacity)

    def plan_decode(self, spans: Sequence[Span], shape: DecodeShape) -> None:
        """Prepare a step of decode rows in the tensors of its shape."""
        assert self._decode is not None, "nothing reserved"
        self._decode.fill(spans, shape, self._scratch)
        self._spans = spans
        self._plans = {self._decode.device: self._decode.plan_of(shape)}

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
        if score.softcap:
            raise UnsupportedAttention("flash attention with a soft cap")
        plan = self._plans.get(key.device)
        if plan is None:
            plan = self._plans[key.device] = self._made(key.device)
        if plan.slots is not None:
            self._keys[layer].flatten(0, 1).index_copy_(0, plan.slots, key)
            self._values[layer].flatten(0, 1).index_copy_(0, plan.slots, value)
        for part in plan.parts:
            rows = part.rows
            if part.table is None:
                keys, values = key[rows], value[rows]
            elif part.index is None:
                keys, values = self._keys[layer], self._values[layer]
            else:
                keys = self._keys[layer].flatten(0, 1).index_select(0, part.index)
                values = self._values[layer].flatten(0, 1).index_select(0, part.index)
            out[rows] = self._call(part, query[rows], keys, values, score)

    def _call(
        self,
        part: _Part,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        score: Score,
    ) -> torch.Tensor:
        window = score.window if score.window is not None and score.window < part.max_k else None
        extra: dict[str, Any] = {}
        if part.table is not None and part.index is None:
            extra = {"seqused_k": part.used, "block_table": part.table}
            grouped = query.shape[1] > keys.shape[-2]
            if self._mode.splits and not (part.is_decode and grouped and window is None):
                extra["num_splits"] = 1
        all_seen = (-1, -1) if part.is_decode else (-1, 0)
        return self._kernel(
            query,
            keys,
            values,
            part.cu_q,
            part.cu_k,
            part.max_q,
            part.max_k,
            scale=score.scale,
            window_size=all_seen if window is None else (window - 1, 0),
            **extra,
        )

    def _made(self, device: torch.device) -> _Plan:
        """The step's plan on a device, from its spans."""
        spans = self._spans
        stored = bool(spans) and bool(spans[0].blocks)
        slots = to_device([slot for span in spans for slot in _slots(span)], device)
        first = 0
        while first < len(spans) and spans[first].is_decode:
            first += 1
        at = first  # a decode row is one token
        parts = [self._part(spans[:first], 0, device)] if first else []
        if first < len(spans):
            parts.append(self._part(spans[first:], at, device))
        return _Plan(slots if stored else None, parts)

    def _part(self, spans: Sequence[Span], offset: int, device: torch.device) -> _Part:
        queries, keys = [0], [0]
        for span in spans:
            queries.append(queries[-1] + span.length)
            keys.append(keys[-1] + span.end)
        cu_q = to_device(queries, device, torch.int32)
        cu_k = to_device(keys, device, torch.int32)
        rows = slice(offset, offset + queries[-1])
        max_q, max_k = max(span.length for span in spans), max(span.end for span in spans)
        if not spans[0].blocks:
            return _Part(rows, cu_q, cu_q, max_q, max_q)
        width = _pages(max_k)
        table = to_device([_row(span, width) for span in spans], device, torch.int32)
        used = to_device([span.end for span in spans], device, torch.int32)
        index = None if self._mode.paged else _gather_index(table, cu_k, keys[-1])
        return _Part(rows, cu_q, cu_k, max_q, max_k, used, table, index)


class _DecodeBuffers:
    """Tensors for decode steps, of the greatest sizes; a step of some shape uses their heads."""

    def __init__(
        self, max_rows: int, max_width: int, device: torch.device, *, packed: bool
    ) -> None:
        self.device, self.max_width = device, max_width
        self._slots = torch.zeros(max_rows, dtype=torch.long, device=device)
        self._used = torch.ones(max_rows, dtype=torch.int32, device=device)
        self._table = torch.zeros(max_rows * max_width, dtype=torch.int32, device=device)
        self._cu_q = torch.arange(max_rows + 1, dtype=torch.int32, device=device)
        self._cu_k = torch.arange(max_rows + 1, dtype=torch.int32, device=device)
        self._packed = packed
        self._indexes: dict[int, torch.Tensor] = {}

    def fill(self, spans: Sequence[Span], shape: DecodeShape, scratch: int) -> None:
        """Write a step into the tensors; padding rows see one token of the page `scratch`."""
        rows, width = shape.rows, shape.width
        missing = rows - len(spans)
        slots = [
            span.blocks[span.start // PAGE_SIZE] * PAGE_SIZE + span.start % PAGE_SIZE
            for span in spans
        ]
        fill(self._slots[:rows], slots + [scratch * PAGE_SIZE] * missing)
        ends = [span.end for span in spans] + [1] * missing
        fill(self._used[:rows], ends)
        table = [block for span in spans for block in _row(span, width)]
        fill(self._table[: rows * width], table + [scratch] * (missing * width))
        if self._packed:
            starts = [0]
            for end in ends:
                starts.append(starts[-1] + end)
            fill(self._cu_k[: rows + 1], starts)
            table_2d = self._table[: rows * width].view(rows, width)
            index = _gather_index(table_2d, self._cu_k[: rows + 1], shape.capacity)
            self._index(shape.capacity).copy_(index)

    def plan_of(self, shape: DecodeShape) -> _Plan:
        """The plan that reads the tensors of a shape."""
        rows, width = shape.rows, shape.width
        part = _Part(
            slice(0, rows),
            self._cu_q[: rows + 1],
            self._cu_k[: rows + 1],
            1,
            width * PAGE_SIZE,
            self._used[:rows],
            self._table[: rows * width].view(rows, width),
            self._index(shape.capacity) if self._packed else None,
        )
        return _Plan(self._slots[:rows], [part])

    def _index(self, capacity: int) -> torch.Tensor:
        if capacity not in self._indexes:
            self._indexes[capacity] = torch.zeros(capacity, dtype=torch.long, device=self.device)
        return self._indexes[capacity]


def _pages(num_tokens: int) -> int:
    return -(-num_tokens // PAGE_SIZE)


def _slots(span: Span) -> list[int]:
    """Where the tokens of a span are stored, in tokens from the pool's beginning."""
    if not span.blocks:
        return []
    return [
        span.blocks[pos // PAGE_SIZE] * PAGE_SIZE + pos % PAGE_SIZE
        for pos in range(span.start, span.end)
    ]


def _row(span: Span, width: int) -> list[int]:
    """A row of the block table; what lies behind a sequence's end is not read."""
    used = list(span.blocks[: _pages(span.end)])
    return used + [0] * (width - len(used))


def _gather_index(table: torch.Tensor, cu_k: torch.Tensor, capacity: int) -> torch.Tensor:
    """Slots [capacity] of all sequences' tokens, one sequence after the other.

    Args:
        table: [n, width]; cu_k: [n + 1], where each sequence begins among the gathered tokens.
    """
    at = torch.arange(capacity, dtype=torch.int32, device=table.device)
    number = torch.searchsorted(cu_k[1:], at, right=True).clamp(max=len(table) - 1)
    pos = (at - cu_k[number]).clamp(max=table.shape[1] * PAGE_SIZE - 1).long()
    return table[number, pos // PAGE_SIZE].long() * PAGE_SIZE + pos % PAGE_SIZE


def flash_kernel() -> Kernel:
    """`varlen_attn` of this torch, called with what its signature has."""
    from torch.nn.attention import varlen

    logging.getLogger(varlen.__name__).setLevel(logging.WARNING)  # it tells of every call
    grouped = "enable_gqa" in inspect.signature(varlen.varlen_attn).parameters

    def kernel(*args: Any, **kwargs: Any) -> torch.Tensor:
        if grouped:
            kwargs["enable_gqa"] = True
        return torch.as_tensor(varlen.varlen_attn(*args, **kwargs))

    return kernel


def flash_fits(
    device: torch.device, dtype: torch.dtype, head_dim: int, softcap: float | None
) -> bool:
    """Whether the kernel computes such layers there."""
    return (
        device.type == "cuda"
        and torch.version.hip is None
        and torch.cuda.get_device_capability(device) >= (8, 0)
        and dtype in (torch.float16, torch.bfloat16)
        and head_dim % 8 == 0
        and head_dim <= _MAX_DIM
        and not softcap
    )
