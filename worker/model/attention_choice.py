"""Which attention backend runs a model: flash attention where it fits and is right, else gathering.

Kernels differ between versions of torch, some are silently wrong. So the one that is to be used is
run on the device first, in the shape of the model's layers, and compared with plain operations.
"""

from __future__ import annotations

import logging
from typing import Any, Final

import torch

from worker.model.attention import AttentionBackend, LayerShape, Score, Span
from worker.model.attention_gather import GatherAttention
from worker.model.attention_varlen import (
    MODES,
    PAGE_SIZE,
    Kernel,
    Mode,
    VarlenAttention,
    flash_fits,
    flash_kernel,
)

log = logging.getLogger(__name__)

GATHER_BLOCK_SIZE: Final = 16
_LENGTHS: Final = (700, 3, 257, 1500)
_WINDOWS: Final = (None, 300)
_DECODES: Final = 3
_MOST_OFF: Final = 2e-2


def choose_backend(config: Any, device: torch.device, dtype: torch.dtype) -> AttentionBackend:
    """The backend for a model.

    Args:
        config: its configuration, of transformers.
        device, dtype: of its first layers.
    """
    shape = _shape_of(config)
    if shape is not None:
        heads, layer = shape
        softcap = getattr(config.get_text_config(), "attn_logit_softcapping", None)
        if flash_fits(device, dtype, layer.key_dim, softcap):
            kernel = flash_kernel()
            for mode in MODES:
                reason = fault(kernel, mode, heads, layer, device, dtype)
                if reason is None:
                    log.info("attention: flash, %s", "paged" if mode.paged else "gathered")
                    return VarlenAttention(kernel, mode)
                log.info("attention: not %s: %s", mode, reason)
            log.warning("flash attention does not work here: attention by plain operations")
    return GatherAttention(GATHER_BLOCK_SIZE)


def _shape_of(config: Any) -> tuple[int, LayerShape] | None:
    """Query heads, and the layers' keys and values, where the configuration tells them."""
    text = config.get_text_config()
    heads = getattr(text, "num_attention_heads", None)
    if not isinstance(heads, int) or getattr(text, "v_head_dim", None):
        return None
    dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    return heads, LayerShape(kv_heads, dim, dim)


@torch.inference_mode()
def fault(
    kernel: Kernel,
    mode: Mode,
    heads: int,
    layer: LayerShape,
    device: torch.device,
    dtype: torch.dtype,
) -> str | None:
    """What is wrong with the kernel called in this way; None when it computes what it should.

    Sequences of several lengths are prefilled in two chunks and then decoded, with and without a
    window. Memory that the kernel may get for its result holds no numbers before.
    """
    layers = {0: (layer, device, dtype)}
    num_blocks = sum(-(-length // PAGE_SIZE) + 1 for length in _LENGTHS)
    random = torch.Generator(device).manual_seed(0)
    tables, at = [], num_blocks
    for length in _LENGTHS:  # pages in falling order: not in that of the sequence
        pages = -(-length // PAGE_SIZE) + 1
        tables.append(range(at - 1, at - 1 - pages, -1))
        at -= pages
    halves = [length // 2 for length in _LENGTHS]
    steps = [[Span(0, half, table) for half, table in zip(halves, tables, strict=True)]]
    steps.append(
        [
            Span(half, length - half, table)
            for half, length, table in zip(halves, _LENGTHS, tables, strict=True)
        ]
    )
    for more in range(_DECODES):
        steps.append(
            [Span(length + more, 1, table) for length, table in zip(_LENGTHS, tables, strict=True)]
        )
    steps.append([*steps[-1][:2], *steps[1][2:]])  # decodes and chunks in one step
    for window in _WINDOWS:
        backends: tuple[AttentionBackend, AttentionBackend] = (
            VarlenAttention(kernel, mode),
            GatherAttention(PAGE_SIZE),
        )
        score = Score(layer.key_dim**-0.5, window=window)
        for backend in backends:
            backend.allocate(layers, num_blocks)
        for spans in steps:
            rows = sum(span.length for span in spans)
            query, key, value = (
                torch.randn(
                    rows, number, layer.key_dim, generator=random, device=device, dtype=dtype
                )
                for number in (heads, layer.kv_heads, layer.kv_heads)
            )
            outs = [torch.zeros_like(query), torch.zeros_like(query)]
            for backend, out in zip(backends, outs, strict=True):
                backend.plan(spans)
                torch.full_like(query, float("nan"))  # is freed, and found by the next allocation
                try:
                    backend.attend(0, query, key, value, score, out)
                except (RuntimeError, TypeError, ValueError) as error:
                    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            found, expected = (out.float() for out in outs)
            off = ((found - expected).norm() / expected.norm()).item()
            if not off <= _MOST_OFF:
                return f"its results are off by {off:.2g}"
    return None
