"""What a quantized layer holds is read out of every kernel, cut along both axes, and put back to the bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from fewstep.numerics.quantized import dequantize
from fewstep.numerics.schemes import SCHEMES
from fewstep.techniques.linears import EmulatedLinear, Int8Linear, torchao_linear
from fewstep.techniques.linears.held import Held
from fewstep.techniques.linears.kernels import held_by, hold
from tests.techniques.tiny import distance

AO = ("int8-dynamic", "int8-weight-only", "fp8-weight-only", "nvfp4-weight-only", "mxfp8")  # made on any machine
NO_PRODUCT = "torchao mxfp8"  # on a CPU
KINDS: dict[str, Callable[[nn.Linear], nn.Module]] = {
    **{f"emulated {name}": partial(EmulatedLinear, scheme=scheme) for name, scheme in SCHEMES.items()},
    "smoothed": partial(EmulatedLinear, scheme=SCHEMES["svd-int4"], smooth=torch.linspace(0.5, 2, 256)),
    "int8 by token": partial(Int8Linear, by_token=True),
    "int8 by tensor": partial(Int8Linear, by_token=False),
    **{f"torchao {name}": partial(torchao_linear, scheme=name) for name in AO},
}


def made(kind: str, bias: bool = True) -> nn.Module:
    torch.manual_seed(3)
    linear = nn.Linear(256, 512, bias=bias)
    return KINDS[kind](linear.bfloat16() if kind.startswith("torchao") else linear).requires_grad_(False)


def held(layer: nn.Module) -> Held:
    found = held_by(layer)
    assert found is not None
    return found


def given(layer: nn.Module) -> Tensor:
    dtype: torch.dtype = layer.weight.dtype  # type: ignore[assignment]
    return torch.randn(3, 256, generator=torch.Generator().manual_seed(1)).to(dtype)


def narrowed(tensor: Tensor, dimension: int, half: int) -> Tensor:
    length = tensor.shape[dimension] // 2
    same = (
        tensor.view(torch.uint8) if tensor.itemsize == 1 else tensor
    )  # torch.cat and copies of FP8 are not everywhere
    return same.narrow(dimension, half * length, length).clone().view(tensor.dtype)


def the_same(a: Held, b: Held) -> bool:
    tensors = [(one.weight.codes, one.weight.scale, one.bias, one.smooth, one.down, one.up) for one in (a, b)]
    pairs = zip(*tensors, strict=True)
    return all(x is y or torch.equal(x.float(), y.float()) for x, y in pairs)  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [True, False])
def test_what_is_put_back_is_what_was_there(kind: str, bias: bool) -> None:
    layer = made(kind, bias)
    before, other = held(layer), copy.deepcopy(layer)
    with torch.no_grad():
        hold(other, before)
        assert the_same(held(other), before)
        if kind != NO_PRODUCT:
            assert torch.equal(other(given(layer)), layer(given(layer)))
    assert before.weight.faults() == []
    assert (before.bias is not None) == bias


@pytest.mark.parametrize("kind", KINDS)
def test_half_of_the_outputs_is_half_of_the_layer(kind: str) -> None:
    layer, x = made(kind), given(made(kind))
    whole = held(layer)
    for half in (0, 1):
        part = copy.deepcopy(layer)
        hold(part, whole.along(0, partial(narrowed, half=half)))
        assert (part.out_features, part.in_features, part.weight.shape) == (256, 256, (256, 256))
        rows = dequantize(whole.weight)[256 * half : 256 * (half + 1)]
        assert torch.equal(dequantize(held(part).weight), rows)
        if kind != NO_PRODUCT:
            expected = layer(x)[:, 256 * half : 256 * (half + 1)]
            assert distance(part(x), expected) < (1e-2 if x.dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_halves_of_the_inputs_add_up(kind: str) -> None:
    layer, x = made(kind, bias=False), given(made(kind))
    whole, total, exact = held(layer), torch.zeros(()), torch.zeros(())
    for half in (0, 1):
        part, own = copy.deepcopy(layer), narrowed(x, 1, half)
        hold(part, whole.along(1, partial(narrowed, half=half)))
        assert (part.out_features, part.in_features, part.weight.shape) == (512, 128, (512, 128))
        columns = dequantize(whole.weight)[:, 128 * half : 128 * (half + 1)]
        assert torch.equal(dequantize(held(part).weight), columns)
        exact = exact + held(part).product(own.float())
        if kind != NO_PRODUCT:
            total = total + part(own).float()
    assert distance(exact, whole.product(x.float())) < 1e-6
    if kind != NO_PRODUCT:
        # Of a dynamic scheme each half has a scale of its own, which is no coarser.
        rounding = distance(layer(x).float(), whole.product(x.float()))
        assert distance(total, whole.product(x.float())) < 1.1 * rounding + 1e-5


def test_the_product_is_that_of_a_scheme_that_rounds_no_input() -> None:
    for kind in ("emulated int8-weight-only", "emulated nvfp4-weight-only"):
        layer = made(kind)
        assert distance(held(layer).product(given(layer)), layer(given(layer))) < 1e-6


def test_a_plain_layer_holds_nothing() -> None:
    assert held_by(nn.Linear(8, 8)) is None
    assert held_by(nn.LayerNorm(8)) is None
