"""Weights in 12 bits give, bit for bit, the products of the weights that they were made from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from worker.engine.config import EngineConfig
from worker.engine.protocol import Job, SequenceParams
from worker.model.build import build
from worker.model.linear_native import NativeProducts

GIB = 1024**3
ROWS = range(1, 13)  # with more than ten the weights themselves are read


@pytest.fixture
def plain(native_products: NativeProducts) -> NativeProducts:
    return native_products


def layer(inputs: int, outputs: int, *, bias: bool = False) -> nn.Linear:
    torch.manual_seed(inputs + outputs)
    linear = nn.Linear(inputs, outputs, bias=bias).to(torch.bfloat16)
    linear.weight.data.normal_(0, 0.02)
    return linear


def bits(values: torch.Tensor) -> torch.Tensor:
    return values.view(torch.int16)


@pytest.mark.parametrize("inputs", [4, 64, 260, 896])
@pytest.mark.parametrize("outputs", [16, 33, 200])
@torch.inference_mode()
def test_products_are_the_same(plain: NativeProducts, inputs: int, outputs: int) -> None:
    squeezed = plain.with_spare(GIB)
    one, gate = (layer(inputs, num, bias=True) for num in (outputs, outputs))
    x = torch.randn(max(ROWS), 2 * inputs).to(torch.bfloat16)[:, :inputs]  # not dense
    other = torch.randn(max(ROWS), outputs).to(torch.bfloat16)
    weights = [products.weight([one, gate]) for products in (plain, squeezed)]
    adding = [products.weight([one]) for products in (plain, squeezed)]
    gated = [products.gated(gate, one) for products in (plain, squeezed)]
    for num in ROWS:
        for expected, found in (
            [weight.linear(x[:num]) for weight in weights],
            [weight.add(x[:num], other[:num]) for weight in adding],
            [weight.compute(x[:num]) for weight in gated],
        ):
            assert torch.equal(bits(expected), bits(found)), num
    assert (squeezed.squeezed_bytes > 0) == (inputs >= 64)


@pytest.mark.parametrize("rare", [0.0, -0.0, 1e-38, 3e38, float("inf"), float("nan")])
@pytest.mark.parametrize("places", [[0], [255], [3, 4, 5, 127, 128], list(range(0, 256, 40))])
@torch.inference_mode()
def test_rare_weights_are_kept(plain: NativeProducts, rare: float, places: list[int]) -> None:
    """In the first and the last group, in neighbours, and in several."""
    linear = layer(256, 96)
    for place in places:
        linear.weight[place % 96, place] = rare
        linear.weight[(place + 48) % 96, place] = -rare
    squeezed = plain.with_spare(GIB)
    expected, found = plain.weight([linear]), squeezed.weight([linear])
    assert squeezed.squeezed_bytes
    x = torch.randn(max(ROWS), 256).to(torch.bfloat16)
    for num in ROWS:
        assert torch.equal(bits(expected.linear(x[:num])), bits(found.linear(x[:num])))


@torch.inference_mode()
def test_each_weight_is_read_back(plain: NativeProducts) -> None:
    """All 65,536 values that are numbers, spread so that every panel has most of them in few
    upper bytes: a row that is 1 at one input shows the weights of that input."""
    linear = layer(1024, 64)
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    finite = every[every.isfinite()]
    spread = finite[torch.randperm(len(finite))]
    at = torch.randperm(64 * 1024)[: 64 * 1024 // 400]
    for part in spread.split(len(at)):
        linear.weight.view(-1)[at[: len(part)]] = part
        squeezed = plain.with_spare(GIB)
        found = squeezed.weight([linear])
        assert squeezed.squeezed_bytes
        inputs = at[: len(part)] % 1024
        eye = torch.zeros(len(inputs), 1024, dtype=torch.bfloat16)
        eye[torch.arange(len(inputs)), inputs] = 1.0
        for few, column in zip(eye.split(10), inputs.split(10), strict=True):
            seen = found.linear(few)
            normal = linear.weight[:, column].t()
            # `vdpbf16ps` takes values below 2^-126 for zero
            normal = torch.where(normal.abs() < 2.0**-126, 0.0, normal)
            assert torch.equal(seen, normal)


@torch.inference_mode()
def test_what_does_not_shrink_or_fit_stays_as_it_is(plain: NativeProducts) -> None:
    wild = layer(256, 64)
    wild.weight.copy_(torch.exp(8 * torch.randn(64, 256)))
    squeezed = plain.with_spare(GIB)
    x = torch.randn(3, 256).to(torch.bfloat16)
    assert torch.equal(squeezed.weight([wild]).linear(x), plain.weight([wild]).linear(x))
    odd = layer(34, 64)
    squeezed.weight([odd])
    assert squeezed.squeezed_bytes == 0

    tame = layer(256, 64)
    squeezed.weight([tame])
    size = squeezed.squeezed_bytes
    assert 0.75 < size / tame.weight.nbytes < 0.85
    small = plain.with_spare(2 * size)
    for _ in range(3):
        assert torch.equal(small.weight([tame]).linear(x), plain.weight([tame]).linear(x))
    assert small.squeezed_bytes == 2 * size


@torch.inference_mode()
def test_up_to_ten_rows_read_the_squeezed_weights_alone(plain: NativeProducts) -> None:
    linear = layer(256, 64)
    expected, found = plain.weight([linear]), plain.with_spare(GIB).weight([linear])
    found._weights.packed.zero_()
    x = torch.randn(11, 256).to(torch.bfloat16)
    for num in range(1, 11):
        assert torch.equal(bits(expected.linear(x[:num])), bits(found.linear(x[:num]))), num
    assert not found.linear(x).any()


@torch.inference_mode()
def test_a_worker_may_go_without(
    plain: NativeProducts,
    checkpoint: Callable[[str], Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    answers = []
    for squeezes in (True, False):
        caplog.clear()
        config = EngineConfig(
            model_path=str(checkpoint("qwen2")),
            dtype="bfloat16",
            squeeze_weights=squeezes,
            prompt_lookup="off",  # so that each step gives a token
        )
        core = build(config, lambda _text: None, num_threads=1).core
        assert ("in 12 bits" in caplog.text) == squeezes
        for number in range(4):
            params = SequenceParams(max_tokens=12, temperature=0.0)
            core.submit(Job(str(number), [3 + number, 5, 7], params))
        found = []
        while core.has_work:
            found += core.step()
        answers.append(found)
    assert len(answers[0]) == 48
    assert answers[0] == answers[1]
