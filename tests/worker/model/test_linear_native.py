"""The engine's own products compute what torch's linear layers compute."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from worker.model.linear_cpu import OneDnnProducts, PackedLinear, Products, can_pack, pack_linears
from worker.model.linear_native import NativeProducts


@pytest.fixture
def native(native_products: NativeProducts) -> NativeProducts:
    return native_products


@pytest.fixture(params=["native", "onednn"])
def products(request: pytest.FixtureRequest) -> Products:
    if request.param == "native":
        return request.getfixturevalue("native")  # type: ignore[no-any-return]
    if not can_pack():
        pytest.skip("this build of torch has no packed products")
    return OneDnnProducts()


def layer(inputs: int, outputs: int, *, bias: bool) -> nn.Linear:
    torch.manual_seed(inputs + outputs)
    return nn.Linear(inputs, outputs, bias=bias).to(torch.bfloat16)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal to bfloat16's 8 bits, of sums of numbers around 1."""
    torch.testing.assert_close(found.float(), expected, rtol=0.01, atol=0.02)


SHAPES = [(96, 64, True), (34, 70, True), (2, 33, False), (64, 17, True), (256, 200, False)]


# on both sides of the heights of tiles and blocks of rows
@pytest.mark.parametrize("rows", [1, 5, 12, 13, 47, 48, 49, 96, 97, 200])
@pytest.mark.parametrize(("inputs", "outputs", "bias"), SHAPES)
@torch.inference_mode()
def test_products_are_those_of_linear_layers(
    products: Products, inputs: int, outputs: int, bias: bool, rows: int
) -> None:
    one, two = layer(inputs, outputs, bias=bias), layer(inputs, outputs + 6, bias=bias)
    gate, up = layer(inputs, outputs, bias=bias), layer(inputs, outputs, bias=bias)
    up.weight.neg_()
    rows = max(rows, products.min_rows)
    x = torch.randn(rows, 3 * inputs).to(torch.bfloat16)[:, inputs : 2 * inputs]  # not dense
    other = torch.randn(rows, outputs).to(torch.bfloat16)
    first, second = (
        F.linear(x.float(), one.weight.float(), None if one.bias is None else one.bias.float())
        for one in (one, two)
    )
    dense = x.contiguous() if isinstance(products, OneDnnProducts) else x
    close(products.weight([one, two]).linear(dense), torch.cat([first, second], 1))
    close(products.weight([one]).add(dense, other), first + other.float())
    gated = F.silu(gate.float()(x.float())) * up.float()(x.float())
    close(products.gated(gate.bfloat16(), up.bfloat16()).compute(dense), gated)


# so many outputs that a task has several panels, the next of which two tiles fetch
@pytest.mark.parametrize("rows", [12, 13, 16, 18, 19])
@pytest.mark.parametrize("inputs", [34, 128])
@torch.inference_mode()
def test_panels_that_are_fetched_ahead(native: NativeProducts, inputs: int, rows: int) -> None:
    wide = layer(inputs, 32 * 32 * torch.get_num_threads() * 2 + 5, bias=True)
    x = torch.randn(rows, inputs).to(torch.bfloat16)
    close(
        native.weight([wide]).linear(x),
        F.linear(x.float(), *map(torch.Tensor.float, wide.parameters())),
    )


@torch.inference_mode()
def test_a_row_is_the_same_however_many_stand_beside_it(native: NativeProducts) -> None:
    weight = native.weight([layer(128, 160, bias=True)])
    x = torch.randn(150, 128).to(torch.bfloat16)
    alone = torch.cat([weight.linear(row[None]) for row in x])
    for rows in (7, 12, 31, 48, 150):
        assert torch.equal(weight.linear(x[:rows]), alone[:rows])


@torch.inference_mode()
def test_rows_of_any_layout_and_of_no_other_type(native: NativeProducts) -> None:
    weight = native.weight([layer(64, 48, bias=True)])
    x = torch.randn(5, 64).to(torch.bfloat16)
    turned = x.t().contiguous().t()
    assert turned.stride(-1) != 1
    assert torch.equal(weight.linear(turned), weight.linear(x))
    with pytest.raises(TypeError, match="float32"):
        weight.linear(x.float())


@torch.inference_mode()
def test_silu_of_any_value(native: NativeProducts) -> None:
    values = [-3e38, -200.0, -88.0, -20.0, -0.0, 0.0, 1e-30, 3.0, 90.0, 3e38]
    x = torch.tensor([[value, 1.0] for value in values], dtype=torch.bfloat16)
    gate, up = (nn.Linear(2, 16, bias=False).to(torch.bfloat16) for _ in range(2))
    gate.weight[:] = torch.tensor([1.0, 0.0])
    up.weight[:] = torch.tensor([0.0, 1.0])
    found = native.gated(gate, up).compute(x)[:, 0]
    torch.testing.assert_close(found, F.silu(x[:, 0].float()).bfloat16(), rtol=0.01, atol=1e-30)


@torch.inference_mode()
def test_what_is_not_finite_stays_visible(native: NativeProducts) -> None:
    linear = layer(8, 16, bias=False)
    x = torch.ones(3, 8, dtype=torch.bfloat16)
    x[1, 3] = float("nan")
    found = native.weight([linear]).linear(x)
    assert found[1].isnan().all()
    assert found[[0, 2]].isfinite().all()
    assert native.gated(linear, linear).compute(x)[1].isnan().all()


@torch.inference_mode()
def test_layers_that_cannot_be_packed_stay_as_they_are(native: NativeProducts) -> None:
    model = nn.Sequential(layer(7, 8, bias=False), layer(8, 8, bias=False), nn.Linear(8, 8))
    assert pack_linears(model, native) == 1
    assert [type(one) for one in model] == [nn.Linear, PackedLinear, nn.Linear]
    expected = F.linear(torch.ones(2, 3, 8).bfloat16(), torch.eye(8).bfloat16())
    assert model[1](expected).shape == (2, 3, 8)
