"""A linear layer with INT8 products for CPUs.

Why one of our own: torchao's INT8 product on a CPU is written for a compiler. Run eagerly it converts activations in
several passes over memory, and compiled with bfloat16 activations it leaves the 8-bit units. torch's
`quantized::linear_dynamic` (FBGEMM) converts, multiplies and rescales in one kernel. It takes float32; as an opaque
operator it is right in bfloat16, eager and compiled alike. `docs/techniques/quantize.md` has the measurements.
"""

from __future__ import annotations

import itertools
import warnings
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.techniques.linears.emulated import shape_of

_packed: dict[int, Any] = {}  # slot -> weights in the kernel's own layout, which no tensor can hold
_slots = itertools.count()


@torch.library.custom_op("fewstep::int8_linear", mutates_args=(), device_types="cpu")
def int8_linear(x: Tensor, slot: Tensor, out_features: int) -> Tensor:
    """x (…, in) float32 -> (…, out) float32, times the weights packed in `slot`.

    `slot` is a tensor, not a number, so that one compiled graph serves all blocks of a class.
    """
    product: Tensor = torch.ops.quantized.linear_dynamic(x, _packed[int(slot)], False)
    return product


@int8_linear.register_fake
def _(x: Tensor, slot: Tensor, out_features: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], out_features)


class Int8Linear(nn.Module):
    """`linear` with INT8 weights: symmetric, one scale per output channel; its input is converted per call and tensor.

    Input and output (…, features) of any floating dtype; the product is accumulated in int32 and rescaled in float32.
    """

    slot: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = shape_of(linear)
        number = next(_slots)
        _packed[number] = pack(linear)
        weakref.finalize(self, _packed.pop, number)
        self.register_buffer("slot", torch.tensor(number), persistent=False)

    @property
    def stored_bytes(self) -> int:
        """INT8 weights, a float64 scale and an int64 zero point for each output, and the float32 bias."""
        return self.out_features * (self.in_features + 8 + 8 + 4)

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = int8_linear(x.float(), self.slot, self.out_features)
        return product.to(x.dtype)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


def int8_scales(weight: Tensor) -> Tensor:
    """Scales (out,) float64 that take the largest |weight| (out, in) of each output to 127; 1 where all are zero."""
    largest = weight.detach().double().abs().amax(dim=1)
    return torch.where(largest > 0, largest / 127, 1.0)


def can_pack() -> bool:
    """Whether this torch still has the kernel and the tensor type that it takes."""
    return hasattr(torch, "quantize_per_channel") and hasattr(torch.ops.quantized, "linear_dynamic")


def pack(linear: nn.Linear) -> Any:
    """The layer's weights in INT8, in the layout of torch's kernel for this CPU."""
    scales = int8_scales(linear.weight)
    zero_points = torch.zeros(linear.out_features, dtype=torch.int64)
    with warnings.catch_warnings():
        # The tensor type is on its way out of torch, the kernel has no other way in. `can_pack` says when it is gone.
        warnings.filterwarnings("ignore", message=".*quantized tensor creation functions")
        quantized = torch.quantize_per_channel(linear.weight.detach().float(), scales, zero_points, 0, torch.qint8)
    bias = None if linear.bias is None else linear.bias.detach().float()
    return torch.ops.quantized.linear_prepack(quantized, bias)


def rounded_input(x: Tensor) -> Tensor:
    """`x` as the kernel sees it, in float32: 8 bits without sign, one scale and zero point for the whole tensor."""
    low, high = x.float().amin().clamp(max=0), x.float().amax().clamp(min=0)
    step = torch.where(high > low, (high - low) / 255, 1.0)
    zero = (-low / step).round()
    return ((x.float() / step).round() + zero).clamp(0, 255).sub(zero) * step
