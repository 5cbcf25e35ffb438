"""Flash attention behind the seam, over a stand-in for its kernel; and how a bad one is found."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from worker.model.attention import LayerShape, Score, Span, UnsupportedAttention
from worker.model.attention_choice import choose_backend, fault
from worker.model.attention_gather import GatherAttention
from worker.model.attention_varlen import MODES, DecodeShape, Mode, VarlenAttention, flash_fits
from worker.model.varlen_plain import plain_varlen

CPU = torch.device("cpu")
GROUPED = (4, LayerShape(2, 8, 8))
SINGLE = (2, LayerShape(2, 8, 8))


def reason(kernel: Any, mode: Mode = MODES[0], shape: Any = GROUPED) -> str | None:
    return fault(kernel, mode, shape[0], shape[1], CPU, torch.float32)


@pytest.mark.parametrize("shape", [GROUPED, SINGLE], ids=["grouped", "single"])
@pytest.mark.parametrize("mode", [MODES[0], MODES[2]], ids=["paged", "gathered"])
def test_it_attends_as_the_plain_backend_does(mode: Mode, shape: Any) -> None:
    assert reason(plain_varlen, mode, shape) is None


def test_split_keys_are_refused_where_the_kernel_computes_them_wrongly() -> None:
    assert "split keys" in str(reason(plain_varlen, Mode(splits=False), SINGLE))


def test_a_kernel_without_pages_is_told_apart() -> None:
    def old(*args: Any, scale: float, window_size: tuple[int, int]) -> torch.Tensor:
        return plain_varlen(*args, scale=scale, window_size=window_size)

    assert str(reason(old)).startswith("TypeError")
    assert reason(old, MODES[2]) is None


def test_a_window_that_is_off_by_one_is_found() -> None:
    def wide(*args: Any, window_size: tuple[int, int], **kwargs: Any) -> torch.Tensor:
        left = window_size[0] + (window_size[0] >= 0)
        return plain_varlen(*args, window_size=(left, window_size[1]), **kwargs)

    assert "off by" in str(reason(wide))


def test_a_row_that_is_not_written_is_found() -> None:
    def forgetful(query: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        found = plain_varlen(query, *args, **kwargs)
        if args[4] == 1:
            found[-1] = float("nan")
        return found

    assert "off by nan" in str(reason(forgetful))


@pytest.mark.parametrize("mode", [MODES[0], MODES[2]], ids=["paged", "gathered"])
@pytest.mark.parametrize("window", [None, 300])
def test_decode_steps_of_one_shape_use_the_same_tensors(mode: Mode, window: int | None) -> None:
    """Padding rows change nothing, and the pages of the sequences stay as they were."""
    heads, layer = GROUPED
    layers = {0: (layer, CPU, torch.float32)}
    fixed, free = VarlenAttention(plain_varlen, mode), VarlenAttention(plain_varlen, mode)
    for backend in (fixed, free):
        backend.allocate(layers, 12)
    fixed.reserve_decode(8, 1024, CPU)
    tables = [[3, 1], [7], [2, 9, 4]]
    lengths = [300, 20, 700]
    score = Score(0.3, window=window)
    random = torch.Generator().manual_seed(0)

    def made(rows: int, number: int) -> torch.Tensor:
        return torch.randn(rows, number, 8, generator=random)

    prefill = [Span(0, length, table) for length, table in zip(lengths, tables, strict=True)]
    rows = sum(lengths)
    tensors = made(rows, heads), made(rows, 2), made(rows, 2)
    for backend in (fixed, free):
        backend.plan(prefill)
        backend.attend(0, *tensors, score, torch.zeros(rows, heads, 8))
    seen: set[int] = set()
    for step in range(3):
        spans = [
            Span(length + step, 1, table) for length, table in zip(lengths, tables, strict=True)
        ]
        query, key, value = made(3, heads), made(3, 2), made(3, 2)
        expected, found = torch.zeros(3, heads, 8), torch.zeros(4, heads, 8)
        free.plan(spans)
        free.attend(0, query, key, value, score, expected)
        shape = fixed.decode_shape(spans, 4)
        fixed.plan_decode(spans, shape)
        padded = [torch.cat([one, one[:1]]) for one in (query, key, value)]
        fixed.attend(0, *padded, score, found)
        torch.testing.assert_close(found[:3], expected)
        seen.add(fixed._plans[CPU].parts[0].used.data_ptr())  # type: ignore[union-attr]
    assert len(seen) == 1
    for pools in ("_keys", "_values"):
        assert torch.equal(getattr(fixed, pools)[0][:12], getattr(free, pools)[0][:12])


def test_shapes_grow_in_few_steps() -> None:
    backend = VarlenAttention(plain_varlen)
    backend.allocate({0: (GROUPED[1], CPU, torch.float32)}, 2)
    backend.reserve_decode(8, 40_000, CPU)
    ends = [1, 1000, 1024, 1025, 5000, 40_000]
    shapes = [backend.decode_shape([Span(end - 1, 1, [0])], 8) for end in ends]
    assert shapes == [DecodeShape(8, width) for width in (4, 4, 4, 16, 64, 157)]
    gathering = VarlenAttention(plain_varlen, MODES[2])
    gathering.reserve_decode(8, 40_000, CPU)
    spans = [Span(2999, 1, [0]), Span(1999, 1, [0])]
    assert gathering.decode_shape(spans, 4) == DecodeShape(4, 157, 8192)


def test_what_the_kernel_does_not_compute_is_refused() -> None:
    backend = VarlenAttention(plain_varlen)
    with pytest.raises(UnsupportedAttention, match="two sizes"):
        backend.allocate({0: (LayerShape(1, 8, 16), CPU, torch.float32)}, 2)
    backend.plan([Span(0, 1, ())])
    row = torch.zeros(1, 1, 8)
    with pytest.raises(UnsupportedAttention, match="soft cap"):
        backend.attend(0, row, row, row, Score(1.0, softcap=30.0), row)


def test_cleared_pages_are_zero_and_others_are_not() -> None:
    backend = VarlenAttention(plain_varlen)
    backend.allocate({0: (LayerShape(1, 8, 8), CPU, torch.float32)}, 3)
    backend._keys[0].fill_(float("nan"))
    backend.clear([2, 0])
    backend.clear([])
    assert [bool(page.isnan().all()) for page in backend._keys[0]] == [False, True, False, True]


def test_pages_are_copied() -> None:
    backend = VarlenAttention(plain_varlen)
    backend.allocate({0: (LayerShape(1, 8, 8), CPU, torch.float32)}, 4)
    for number, page in enumerate(backend._keys[0]):
        page.fill_(number)
    backend.copy([(0, 2), (1, 3)])
    assert [page.unique().tolist() for page in backend._keys[0]] == [[0], [1], [0], [1], [4]]


def test_without_cuda_attention_is_gathered() -> None:
    from transformers import LlamaConfig

    assert not flash_fits(CPU, torch.bfloat16, 64, None)
    backend = choose_backend(LlamaConfig(), CPU, torch.float32)
    assert isinstance(backend, GatherAttention)
    assert backend.block_size == 16
