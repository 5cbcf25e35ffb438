"""The CPU kernels compute what torch's operations compute."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from worker.engine.config import EngineConfig
from worker.engine.protocol import Job, SequenceParams
from worker.model.attention import LayerShape, Score, Span
from worker.model.attention_gather import GatherAttention
from worker.model.attention_native import NativeAttention
from worker.model.build import build
from worker.model.kernels import Kernels, KernelSet, load_kernels

DTYPES = [torch.float32, torch.bfloat16]


def off(dtype: torch.dtype) -> dict[str, float]:
    return {"atol": 2e-5, "rtol": 2e-5} if dtype == torch.float32 else {"atol": 2e-2, "rtol": 2e-2}


@pytest.fixture(scope="module")
def kernels() -> KernelSet:
    found = load_kernels(lambda _text: None)
    if found is None:
        pytest.skip("no C++ compiler")
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [7, 64, 896])
def test_rms_norm(kernels: KernelSet, dtype: torch.dtype, width: int) -> None:
    rows, weight = torch.randn(5, width).to(dtype), torch.randn(width).to(dtype)
    found = kernels[dtype].rms_norm(rows, weight, 1e-6, torch.empty_like(rows))
    torch.testing.assert_close(found, F.rms_norm(rows, (width,), weight, 1e-6), **off(dtype))


def test_rms_norm_of_heads_inside_of_wider_rows(kernels: KernelSet) -> None:
    whole, weight = torch.randn(5, 9, 16), torch.randn(16)
    before = whole.clone()
    part = whole[:, 2:6]
    kernels[torch.float32].rms_norm(part, weight, 1e-6, part)
    expected = before.clone()
    expected[:, 2:6] = F.rms_norm(before[:, 2:6], (16,), weight, 1e-6)
    torch.testing.assert_close(whole, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotation_is_that_of_transformers(kernels: KernelSet, dtype: torch.dtype) -> None:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    whole = torch.randn(6, 5, 16).to(dtype)
    cos, sin = torch.randn(6, 16).to(dtype), torch.randn(6, 16).to(dtype)
    heads = whole.transpose(0, 1)[None]
    expected, _same = apply_rotary_pos_emb(heads, heads, cos[None], sin[None])
    last = whole[:, 4].clone()
    kernels[dtype].rotate(whole[:, :4], cos, sin)
    torch.testing.assert_close(whole[:, :4], expected[0].transpose(0, 1)[:, :4], **off(dtype))
    assert torch.equal(whole[:, 4], last)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "value_dim", "size"),
    [(14, 2, 64, 64, 16), (4, 4, 128, 128, 16), (9, 1, 64, 64, 16), (6, 3, 24, 24, 16),
     (4, 2, 16, 40, 16), (4, 2, 64, 64, 8)],
)  # fmt: skip
@pytest.mark.parametrize(
    "score", [Score(0.1), Score(0.1, window=21), Score(0.5, softcap=3.0)], ids=str
)
def test_attention_is_that_of_plain_operations(
    kernels: KernelSet,
    dtype: torch.dtype,
    heads: int,
    kv_heads: int,
    dim: int,
    value_dim: int,
    size: int,
    score: Score,
) -> None:
    """Prefill in chunks, then decode rows alone and between chunks, in blocks out of order."""
    rng, most = random.Random(3), 40
    backends = [NativeAttention(kernels, size), GatherAttention(size)]
    for backend in backends:
        layers = {0: (LayerShape(kv_heads, dim, value_dim), torch.device("cpu"), dtype)}
        backend.allocate(layers, most)
    blocks = list(range(1, most))
    rng.shuffle(blocks)
    tables = [[blocks.pop() for _ in range(-(-64 // size))] for _ in range(3)]
    lengths = [1, 31, 40]
    steps = [
        [Span(0, length, table) for length, table in zip(lengths, tables, strict=True)],
        [Span(length, 1, table) for length, table in zip(lengths, tables, strict=True)],
        [Span(2, 1, tables[0]), Span(32, 5, tables[1]), Span(41, 1, tables[2])],
    ]
    for spans in steps:
        rows = sum(span.length for span in spans)
        query = torch.randn(rows, heads, dim).to(dtype)
        # as a layer passes them: views of one wider tensor
        both = torch.randn(rows, kv_heads, dim + value_dim).to(dtype)
        outs = [torch.empty(rows, heads, value_dim, dtype=dtype) for _ in backends]
        for backend, out in zip(backends, outs, strict=True):
            backend.plan(spans)
            backend.attend(0, query, both[..., :dim], both[..., dim:], score, out)
        torch.testing.assert_close(outs[0], outs[1], **off(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("left", [float("nan"), float("inf"), 3e38])
def test_what_another_sequence_left_in_a_block_does_not_count(
    kernels: KernelSet, dtype: torch.dtype, left: float
) -> None:
    backends = [NativeAttention(kernels, 16) for _ in range(2)]
    query, both = torch.randn(4, 4, 64).to(dtype), torch.randn(4, 2, 128).to(dtype)
    found = []
    for backend, old in zip(backends, (0.0, left), strict=True):
        backend.allocate({0: (LayerShape(2, 64, 64), torch.device("cpu"), dtype)}, 4)
        rows = torch.full((32, 4, 64), 0.0).to(dtype)
        stale = torch.full((32, 2, 128), old).to(dtype)
        backend.plan([Span(0, 32, [2, 1])])
        backend.attend(0, rows, stale[..., :64], stale[..., 64:], Score(0.1), rows.clone())
        out = torch.empty(4, 4, 64, dtype=dtype)
        backend.plan([Span(0, 3, [1]), Span(0, 1, [2])])
        backend.attend(0, query, both[..., :64], both[..., 64:], Score(0.1), out)
        found.append(out)
    assert found[1].isfinite().all()
    assert torch.equal(*found)


def test_bfloat16_is_rounded_as_torch_rounds(kernels: KernelSet) -> None:
    values = torch.tensor([[1.00390625, 1.01171875, -1.00390625, 3.0e38]]).bfloat16()
    one = torch.ones(1, 4, dtype=torch.bfloat16)
    zero = torch.zeros(1, 4, dtype=torch.bfloat16)
    rows = values[:, None].clone()
    kernels[torch.bfloat16].rotate(rows, one, zero)
    assert torch.equal(rows[:, 0], values)


def test_the_library_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    told: list[str] = []
    if load_kernels(told.append) is None:
        pytest.skip("no C++ compiler")
    assert told == ["compiling CPU kernels"]
    [library] = (tmp_path / "trireme").iterdir()
    made = library.stat().st_mtime_ns
    assert isinstance((load_kernels(told.append) or {})[torch.float32], Kernels)
    assert len(told) == 1
    assert library.stat().st_mtime_ns == made


def test_a_folder_that_others_may_write_to_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "trireme"
    folder.mkdir()
    os.chmod(folder, 0o777)
    if load_kernels(lambda _text: None) is None:
        pytest.skip("no C++ compiler")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("compiler", ["/nonexistent/c++", "/bin/false"])
def test_without_a_compiler_that_works_there_are_none(
    compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", compiler)
    assert load_kernels(lambda _text: None) is None


def test_a_type_without_kernels_is_served_without_them(
    checkpoint: Callable[[str], Path],
) -> None:
    config = EngineConfig(model_path=str(checkpoint("qwen2")), dtype="float16")
    core = build(config, lambda _text: None, num_threads=1).core
    core.submit(Job("a", [3, 5, 7], SequenceParams(max_tokens=4, top_p=0.9)))
    found = []
    while core.has_work:
        found += core.step()
    assert len(found) == 4
