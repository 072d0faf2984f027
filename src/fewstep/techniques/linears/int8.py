"""A linear layer with INT8 products for CPUs.

Why one of our own: torchao's INT8 product on a CPU is written for a compiler. Run eagerly it converts activations in
several passes over memory, and compiled with bfloat16 activations it leaves the 8-bit units. Here the product is an
opaque operator, right in float32 and bfloat16, eager and compiled alike. Two kernels of torch's are behind it:

- with AMX oneDNN's, which only multiplies. What is around it is plain torch: the input gets a scale for each token, and
  compiled that becomes part of the code that made the input and of the code that takes the output.
- without AMX FBGEMM's `quantized::linear_dynamic`, which converts the input with one scale and zero point for the whole
  tensor, multiplies and rescales at once. On an x86 CPU without AVX512-VNNI it adds pairs in 16 bits, which overflow
  where the input has 8, so there it gets 7.

`docs/techniques/quantize.md` has the measurements.
"""

from __future__ import annotations

import itertools
import warnings
import weakref
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.numerics.quantized import WHOLE, Layout, Quantized, dequantize
from fewstep.techniques.linears.emulated import outline
from fewstep.techniques.linears.held import Held

BY_ROW = Layout("int8", (1, WHOLE))
WIDE = ("avx512_vnni", "amx_int8", "i8mm", "dot")  # with one of them FBGEMM adds in 32 bits
TINY = 1e-12  # the least scale of a token, so that one of zeros is no division by zero


@dataclass(frozen=True, eq=False)
class _Product:
    """Weights (out, in) in oneDNN's own layout, with what it asks for beside them for each output."""

    codes: Tensor
    scales: Tensor
    zero_points: Tensor


_packed: dict[int, Any] = {}  # slot -> weights in their kernel's own layout, which no tensor of a module can hold
_slots = itertools.count()


class _Slot:
    """A place in `_packed`, free again when the last layer that holds it is gone: copies of a layer share it."""

    def __init__(self, weights: Any) -> None:
        self.number = next(_slots)
        _packed[self.number] = weights
        weakref.finalize(self, _packed.pop, self.number)

    def __deepcopy__(self, memo: object) -> _Slot:
        return self


# `slot` is a tensor, not a number, so that one compiled graph serves all blocks of a class.


@torch.library.custom_op("fewstep::int8_linear", mutates_args=(), device_types="cpu")
def int8_linear(x: Tensor, slot: Tensor, out_features: int) -> Tensor:
    """x (…, in) float32 -> (…, out) float32, times the weights packed in `slot`, by FBGEMM."""
    product: Tensor = torch.ops.quantized.linear_dynamic(x, _packed[int(slot)], input_levels() < 255)
    return product


@torch.library.custom_op("fewstep::int8_product", mutates_args=(), device_types="cpu")
def int8_product(codes: Tensor, slot: Tensor, out_features: int) -> Tensor:
    """codes (…, in) int8 -> (…, out) float32, times the weights packed in `slot` and their scales, by oneDNN."""
    return _multiplied(codes, _packed[int(slot)])


def _multiplied(codes: Tensor, w: _Product) -> Tensor:
    product: Tensor = torch.ops.onednn.qlinear_pointwise(
        codes, 1.0, 0, w.codes, w.scales, w.zero_points, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return product


@int8_linear.register_fake
@int8_product.register_fake
def _(x: Tensor, slot: Tensor, out_features: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], out_features, dtype=torch.float32)


class Int8Linear(nn.Module):
    """`linear` with INT8 weights: symmetric, one scale per output channel; its input is converted in each call.

    Input and output (…, features) of any floating dtype; the product is accumulated in int32 and rescaled in float32.

    Args:
        by_token: oneDNN's kernel and a scale for each token, else FBGEMM's and one for the tensor; None: as is quicker
            on this CPU.
    """

    slot: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear, *, by_token: bool | None = None) -> None:
        super().__init__()
        self.by_token, self._dtype = has_amx() if by_token is None else by_token, linear.weight.dtype
        scales = int8_scales(linear.weight)
        codes = (linear.weight.detach().double() / scales[:, None]).round().to(torch.int8)
        bias = None if linear.bias is None else linear.bias.detach().float()
        self.hold(Held(Quantized(BY_ROW, codes, scales.float()[:, None]), bias))

    def hold(self, held: Held) -> None:
        """Take other numbers, of as many features as there are of them: a weight of `BY_ROW`, and a bias."""
        self.out_features, self.in_features = held.weight.shape
        self.weight = outline(held.weight.shape, self._dtype)
        self._packed = _Slot(_product(held.weight) if self.by_token else _fbgemm(held))
        self.register_buffer("slot", torch.tensor(self._packed.number), persistent=False)
        self.register_buffer("scale", held.weight.scale)
        self.register_buffer("bias", held.bias)

    @property
    def held(self) -> Held:
        """Unpacked: the codes are read out of the kernel's own layout."""
        codes = (_codes if self.by_token else _codes_of_fbgemm)(_packed[self._packed.number], self.in_features)
        return Held(Quantized(BY_ROW, codes, self.scale), self.bias)

    @property
    def stored_bytes(self) -> int:
        """INT8 weights, a scale and a zero point for each output, and the float32 bias."""
        scale, zero_point = (4, 4) if self.by_token else (8, 8)
        return self.out_features * (self.in_features + scale + zero_point + 4)

    def forward(self, x: Tensor) -> Tensor:
        if not self.by_token:
            product: Tensor = int8_linear(x.float(), self.slot, self.out_features)
            return product.to(x.dtype)
        scale = (x.abs().amax(-1, keepdim=True).float() / 127).clamp(min=TINY)
        codes = (x / scale).round_().to(torch.int8)
        product = int8_product(codes, self.slot, self.out_features).mul_(scale)
        return (product if self.bias is None else product.add_(self.bias)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, by_token={self.by_token}"


@cache
def has_amx() -> bool:
    """Whether this CPU has the matrix units for INT8 on which oneDNN is twice as fast as FBGEMM, and more."""
    return torch.cpu.get_capabilities().get("amx_int8") is True


@cache
def input_levels() -> int:
    """The largest code of an input that FBGEMM multiplies without overflow on this CPU."""
    known = torch.cpu.get_capabilities()
    return 255 if any(known.get(name) is True for name in WIDE) else 127


def int8_scales(weight: Tensor) -> Tensor:
    """Scales (out,) float64 that take the largest |weight| (out, in) of each output to 127; 1 where all are zero."""
    largest = weight.detach().double().abs().amax(dim=1)
    return torch.where(largest > 0, largest / 127, 1.0)


def can_pack() -> bool:
    """Whether this torch still has the kernel for this CPU and what it takes."""
    if has_amx():
        return hasattr(torch.ops.onednn, "qlinear_prepack") and hasattr(torch.ops.onednn, "qlinear_pointwise")
    return hasattr(torch, "quantize_per_channel") and hasattr(torch.ops.quantized, "linear_dynamic")


def _product(q: Quantized) -> _Product:
    zero_points = torch.zeros(q.shape[0], dtype=torch.int32)
    return _Product(torch.ops.onednn.qlinear_prepack(q.codes.contiguous(), None), q.scale.flatten(), zero_points)


def _fbgemm(held: Held) -> Any:
    scales = held.weight.scale.flatten().double()
    zero_points = torch.zeros(held.weight.shape[0], dtype=torch.int64)
    with warnings.catch_warnings():
        # The tensor type is on its way out of torch, the kernel has no other way in. `can_pack` says when it is gone.
        warnings.filterwarnings("ignore", message=".*quantized tensor creation functions")
        quantized = torch.quantize_per_channel(dequantize(held.weight), scales, zero_points, 0, torch.qint8)
    return torch.ops.quantized.linear_prepack(quantized, held.bias)


def _codes(packed: _Product, inputs: int) -> Tensor:
    """What `_product` was made of: the products of each input alone are codes times scales."""
    ones = replace(packed, scales=torch.ones_like(packed.scales))
    return _multiplied(torch.eye(inputs, dtype=torch.int8), ones).T.to(torch.int8).contiguous()


def _codes_of_fbgemm(packed: Any, inputs: int) -> Tensor:
    codes: Tensor = torch.ops.quantized.linear_unpack(packed)[0].int_repr()
    return codes


def rounded_input(x: Tensor) -> Tensor:
    """`x` as FBGEMM sees it, in float32: 7 or 8 bits without sign, one scale and zero point for the whole tensor."""
    most = input_levels()
    low, high = x.float().amin().clamp(max=0), x.float().amax().clamp(min=0)
    step = torch.where(high > low, (high - low) / most, 1.0)
    zero = (-low / step).round()
    return ((x.float() / step).round() + zero).clamp(0, most).sub(zero) * step
