"""Attention over sequences of several lengths, by plain operations: flash attention's meaning.

It stands in for the kernel where there is none, in tests and dry runs, and keeps its rules: the
last query of a sequence meets its last key, and a window counts the tokens besides the own one.
"""

from __future__ import annotations

import torch


def plain_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int] = (-1, -1),
    seqused_k: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    num_splits: int | None = None,
) -> torch.Tensor:
    """As `torch.nn.attention.varlen.varlen_attn` with `enable_gqa`, in float32 inside.

    Raises:
        ValueError: for what the kernel refuses or computes wrongly.
    """
    heads, kv_heads = query.shape[1], key.shape[-2]
    in_batch = max_q == 1 and heads > kv_heads and window_size == (-1, -1)
    if block_table is not None and not in_batch and num_splits != 1:
        raise ValueError("split keys of packed queries: the kernel leaves rows unwritten")
    if block_table is not None and key.shape[1] % 256:
        raise ValueError("Paged KV cache block size must be divisible by 256")
    out = torch.empty_like(query)
    starts_q, starts_k = cu_seq_q.tolist(), cu_seq_k.tolist()
    for number in range(len(starts_q) - 1):
        rows = slice(starts_q[number], starts_q[number + 1])
        used = starts_k[number + 1] - starts_k[number]
        if seqused_k is not None:
            used = int(seqused_k[number])
        if rows.stop - rows.start > max_q or used > max_k:
            raise ValueError("a sequence is longer than what the kernel was told")
        if block_table is None:
            keys, values = (one[starts_k[number] :][:used] for one in (key, value))
        else:
            pages = block_table[number, : -(-used // key.shape[1])].long()
            keys, values = (one[pages].flatten(0, 1)[:used] for one in (key, value))
        out[rows] = _attend(query[rows], keys, values, scale, window_size)
    return out


def _attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scale: float,
    window_size: tuple[int, int],
) -> torch.Tensor:
    """One sequence: query [q, heads, dim], keys and values [k, kv_heads, dim]."""
    group = query.shape[1] // keys.shape[1]
    keys, values = (
        one.float().repeat_interleave(group, 1).transpose(0, 1) for one in (keys, values)
    )
    at = torch.arange(query.shape[0], device=query.device)[:, None]
    own = at + keys.shape[1] - query.shape[0]
    column = torch.arange(keys.shape[1], device=query.device)[None, :]
    hidden = torch.zeros(own.shape[0], column.shape[1], dtype=torch.bool, device=query.device)
    left, right = window_size
    if left >= 0:
        hidden |= column < own - left
    if right >= 0:
        hidden |= column > own + right
    scores = query.float().transpose(0, 1) @ keys.transpose(1, 2) * scale
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return (weights @ values).transpose(0, 1).to(query.dtype)
