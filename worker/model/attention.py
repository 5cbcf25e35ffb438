"""Paged attention behind transformers' AttentionInterface.

A step's tokens lie flat in one row, [1, tokens]: decode rows (one token each) and prefill chunks
(a run of tokens each). `StepPlan` says what lies where; the runner makes it once a step and every
layer uses it. Decode rows of similar length are attended together: the query heads of a group
become rows of one small matrix product against the gathered blocks.

The mask function registered beside it builds no mask. It returns None for full attention, and for
a sliding window a tensor without storage whose last dimension is the window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface

from worker.model.kv_cache import KVCache, LayerShape

IMPLEMENTATION: Final = "trireme_paged"


class UnsupportedAttention(Exception):
    """A layer asks for something that this attention does not do."""


@dataclass(frozen=True, slots=True)
class Span:
    """One sequence's part of a step.

    Attributes:
        start: position of its first token within the sequence.
        length: tokens of it in this step.
        blocks: its block table; empty when nothing is stored (embeddings).
    """

    start: int
    length: int
    blocks: Sequence[int]

    @property
    def end(self) -> int:
        """Tokens of the sequence once the step is done."""
        return self.start + self.length


@dataclass(frozen=True, slots=True)
class _DecodeGroup:
    """Decode rows attended together.

    `rows` [n] in the flat batch, `blocks` [n, m], `bias` [n, m * block_size], 0 or -inf.
    """

    rows: torch.Tensor
    blocks: torch.Tensor
    bias: torch.Tensor


@dataclass(slots=True)
class StepPlan:
    """What a step's flat row holds, with index tensors made once and kept by window.

    Args:
        spans: the sequences' parts, in the order in which they lie in the row.
        block_size: tokens a block.
        device: where the index tensors live.

    Attributes:
        slots: [tokens], where the step's tokens are stored; None when nothing is.
        chunks: prefill chunks with their offset in the row.
    """

    spans: Sequence[Span]
    block_size: int
    device: torch.device
    slots: torch.Tensor | None = None
    chunks: list[tuple[int, Span]] = field(default_factory=list)
    _groups: dict[int | None, list[_DecodeGroup]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        offset = 0
        for span in self.spans:
            if not self._is_decode(span):
                self.chunks.append((offset, span))
            offset += span.length
        if self.spans and self.spans[0].blocks:
            size = self.block_size
            self.slots = torch.tensor(
                [
                    span.blocks[pos // size] * size + pos % size
                    for span in self.spans
                    for pos in range(span.start, span.end)
                ],
                device=self.device,
            )

    def decode_groups(self, window: int | None) -> list[_DecodeGroup]:
        """Decode rows, grouped so that no group is padded to more than about twice its tokens."""
        if window not in self._groups:
            self._groups[window] = self._group(window)
        return self._groups[window]

    @staticmethod
    def _is_decode(span: Span) -> bool:
        return span.length == 1 and span.start > 0 and bool(span.blocks)

    def _group(self, window: int | None) -> list[_DecodeGroup]:
        entries: list[tuple[int, int, Span]] = []  # (blocks to read, row, span)
        row = 0
        for span in self.spans:
            if self._is_decode(span):
                first = self._first_block(span, window)
                entries.append((-(-span.end // self.block_size) - first, row, span))
            row += span.length
        entries.sort(key=lambda entry: entry[0])
        groups: list[list[tuple[int, int, Span]]] = []
        for entry in entries:
            if groups and entry[0] <= 2 * groups[-1][0][0] + 4:
                groups[-1].append(entry)
            else:
                groups.append([entry])
        return [self._tensors(group, window) for group in groups]

    def _first_block(self, span: Span, window: int | None) -> int:
        return 0 if window is None else max(0, span.end - window) // self.block_size

    def _tensors(self, group: list[tuple[int, int, Span]], window: int | None) -> _DecodeGroup:
        size, width = self.block_size, group[-1][0]
        table, lows, highs = [], [], []
        for count, _row, span in group:
            first = self._first_block(span, window)
            used = list(span.blocks[first : first + count])
            table.append(used + [used[0]] * (width - count))
            lows.append(0 if window is None else max(0, span.end - window) - first * size)
            highs.append(span.end - first * size)
        at = torch.arange(width * size)
        seen = (at >= torch.tensor(lows)[:, None]) & (at < torch.tensor(highs)[:, None])
        bias = torch.zeros(seen.shape).masked_fill_(~seen, float("-inf"))
        return _DecodeGroup(
            rows=torch.tensor([row for _count, row, _span in group], device=self.device),
            blocks=torch.tensor(table, device=self.device),
            bias=bias.to(self.device),
        )


class PagedAttention:
    """The attention function of one model; the runner sets `plan` before each forward.

    With `cache` unset it records the shape of each layer's keys and values and attends within
    the step alone: that is how the pool's size is found, and how embeddings are computed.
    """

    def __init__(self) -> None:
        self.plan: StepPlan | None = None
        self.cache: KVCache | None = None
        self.layers: dict[int, tuple[LayerShape, torch.device, torch.dtype]] = {}

    def install(self, model: Any) -> None:
        """Make `model` attend through this object.

        Raises:
            UnsupportedAttention: when the model does not use the attention interface.
        """
        AttentionInterface.register(IMPLEMENTATION, self._attend)
        AttentionMaskInterface.register(IMPLEMENTATION, _window_only)
        model.set_attn_implementation(IMPLEMENTATION)
        if model.config._attn_implementation != IMPLEMENTATION:
            raise UnsupportedAttention("the model does not use the attention interface")

    def _attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        softcap: float | None = None,
        s_aux: torch.Tensor | None = None,
        **_unused: Any,
    ) -> tuple[torch.Tensor, None]:
        """transformers' attention signature.

        Args:
            query: [1, heads, tokens, head_dim]; key, value: [1, kv_heads, tokens, head_dim].
            attention_mask: what `_window_only` returned.

        Returns:
            [1, tokens, heads, head_dim], and None for the weights.
        """
        if self.plan is None or query.shape[0] != 1:
            raise UnsupportedAttention("a forward outside of a step")
        if s_aux is not None:
            raise UnsupportedAttention("attention sinks")
        window = None if attention_mask is None else attention_mask.shape[-1]
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        layer = int(getattr(module, "layer_idx"))  # noqa: B009  # not in nn.Module's type
        keys, values = key[0], value[0]
        if self.cache is None:
            shape = LayerShape(keys.shape[0], keys.shape[-1], values.shape[-1])
            self.layers[layer] = (shape, keys.device, keys.dtype)
        elif self.plan.slots is not None:
            self.cache.write(layer, self.plan.slots.to(keys.device), keys, values)
        heads = query[0].reshape(
            keys.shape[0], -1, *query.shape[2:]
        )  # [kv_heads, group, tokens, dim]
        out = torch.empty(
            (*heads.shape[:3], values.shape[-1]), device=query.device, dtype=query.dtype
        )
        score = _Score(scale, softcap)
        for offset, span in self.plan.chunks:
            part = slice(offset, offset + span.length)
            out[:, :, part] = self._chunk(
                layer, span, heads[:, :, part], keys[:, part], values[:, part], window, score
            )
        for group in self.plan.decode_groups(window):
            out.index_copy_(2, group.rows.to(out.device), self._decode(layer, heads, group, score))
        return out.flatten(0, 1).transpose(0, 1).unsqueeze(0), None

    def _chunk(
        self,
        layer: int,
        span: Span,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        window: int | None,
        score: _Score,
    ) -> torch.Tensor:
        """Causal attention of a run of tokens over themselves and what is stored before them."""
        first = 0
        if span.start > 0:
            assert self.cache is not None
            size = self.cache.block_size
            first = 0 if window is None else max(0, span.start + 1 - window) // size
            blocks = torch.tensor([span.blocks[first : -(-span.end // size)]], device=key.device)
            keys, values = self.cache.gather(layer, blocks)
            held = span.end - first * size
            key, value = keys[:, 0, :held], values[:, 0, :held]
        if span.start == 0 and (window is None or span.length <= window):
            return score.causal(query, key, value)
        rows = torch.arange(span.start, span.end, device=key.device)[:, None]
        cols = torch.arange(key.shape[1], device=key.device)[None, :] + first * (
            self.cache.block_size if self.cache else 0
        )
        seen = cols <= rows
        if window is not None:
            seen &= cols > rows - window
        bias = torch.zeros(seen.shape, device=key.device).masked_fill_(~seen, float("-inf"))
        return score.biased(query, key[:, None], value[:, None], bias)

    def _decode(
        self, layer: int, heads: torch.Tensor, group: _DecodeGroup, score: _Score
    ) -> torch.Tensor:
        """One query token a sequence: [kv_heads, group, n, dim]."""
        assert self.cache is not None
        keys, values = self.cache.gather(layer, group.blocks.to(heads.device))
        query = heads.index_select(2, group.rows.to(heads.device)).transpose(1, 2)
        bias = group.bias.to(heads.device)[:, None, :]
        return score.biased(query, keys, values, bias).transpose(1, 2)


@dataclass(frozen=True, slots=True)
class _Score:
    """How scores are made from queries and keys: scale, and the soft cap of Gemma 2."""

    scale: float
    softcap: float | None

    def causal(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Query [kv_heads, group, t, dim] over key, value [kv_heads, t, dim] of the same tokens."""
        if not self.softcap:
            return F.scaled_dot_product_attention(
                query.transpose(0, 1),
                key.expand(query.shape[1], *key.shape),
                value.expand(query.shape[1], *value.shape),
                is_causal=True,
                scale=self.scale,
            ).transpose(0, 1)
        ahead = torch.full((key.shape[1],) * 2, float("-inf"), device=key.device).triu_(1)
        return self.biased(query, key[:, None], value[:, None], ahead)

    def biased(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        """Attention with an additive float32 bias.

        Args:
            query: [kv_heads, n, rows, dim]; key, value: [kv_heads, n, cols, dim], n or 1.
            bias: broadcastable to [n, rows, cols], -inf where not to look.
        """
        if not self.softcap:
            spread = (query.shape[0], query.shape[1])
            return F.scaled_dot_product_attention(
                query,
                key.expand(*spread, -1, -1),
                value.expand(*spread, -1, -1),
                attn_mask=bias.to(query.dtype),
                scale=self.scale,
            )
        scores = torch.matmul(query, key.transpose(-1, -2)).float() * self.scale
        if self.softcap:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        scores = scores + bias
        return torch.matmul(torch.softmax(scores, dim=-1).to(value.dtype), value)


def _window_only(*_args: Any, local_size: int | None = None, **_kwargs: Any) -> torch.Tensor | None:
    """Instead of a mask: None, or a tensor without storage that is `local_size` wide."""
    return None if local_size is None else torch.empty((1, 1, 1, local_size), device="meta")


def supported_by_mask(config: Any) -> bool:
    """Whether full causal attention and sliding windows are all that `config` asks for."""
    text = config.get_text_config()
    layer_types = set(getattr(text, "layer_types", None) or ())
    return (
        not getattr(text, "attention_chunk_size", None)
        and not getattr(text, "use_bidirectional_attention", None)
        and layer_types <= {"full_attention", "sliding_attention"}
    )
