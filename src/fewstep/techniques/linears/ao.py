"""torchao's quantized linear layers, one config a scheme."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import nn

from fewstep.numerics.quantized import WHOLE, Layout, Quantized
from fewstep.numerics.swizzle import in_lines, unswizzle
from fewstep.techniques.linears.held import Held

STABLE, MX = "torchao.quantization", "torchao.prototype.mx_formats"


@dataclass(frozen=True)
class Config:
    """A config class of torchao: where it is, its name, its arguments, and the granularity class it takes if any."""

    module: str
    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    granularity: str | None = None

    def make(self, dtype: torch.dtype) -> Any:
        """The config for weights of `dtype`. Scales per row exist for bfloat16 weights only."""
        arguments = dict(self.arguments)
        if self.granularity is not None:
            chosen = self.granularity if dtype == torch.bfloat16 else "PerTensor"
            arguments["granularity"] = getattr(import_module(STABLE), chosen)()
        return getattr(import_module(self.module), self.name)(**arguments)


_FP8 = "Float8DynamicActivationFloat8WeightConfig"
CONFIGS = {
    "int8-dynamic": Config(STABLE, "Int8DynamicActivationInt8WeightConfig"),
    "fp8-dynamic": Config(STABLE, _FP8, granularity="PerRow"),
    "fp8-dynamic-tensor": Config(STABLE, _FP8, granularity="PerTensor"),
    "mxfp8": Config(MX, "MXDynamicActivationMXWeightConfig"),
    # its Triton kernel for the input needs another package, which no index has for every machine
    "nvfp4": Config(MX, "NVFP4DynamicActivationNVFP4WeightConfig", {"use_triton_kernel": False}),
    "int8-weight-only": Config(STABLE, "Int8WeightOnlyConfig"),
    "fp8-weight-only": Config(STABLE, "Float8WeightOnlyConfig"),
    "nvfp4-weight-only": Config(MX, "NVFP4WeightOnlyConfig"),
}

BLOCKS = {"NVFP4Tensor": Layout("e2m1", (1, 16), "e4m3"), "MXTensor": Layout("e4m3", (1, 32), "e8m0")}
ELEMENTS = {"Int8Tensor": "int8", "Float8Tensor": "e4m3"}  # with scales of rows, or one


def torchao_linear(linear: nn.Linear, scheme: str) -> nn.Linear:
    """A layer beside `linear`, with torchao's weights of a scheme in `CONFIGS`; `linear` itself keeps its own."""
    from torchao.quantization import quantize_

    beside = nn.Linear(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
    beside.weight, beside.bias = linear.weight, linear.bias
    quantize_(beside, CONFIGS[scheme].make(linear.weight.dtype))
    return beside


def held_in(linear: nn.Linear) -> Held | None:
    """The numbers of a layer with torchao's weights; None where they are of a kind that is not known."""
    weight: Any = linear.weight
    layout = layout_of(weight)
    if layout is None:
        return None
    scale, grid = weight.scale, layout.grid(tuple(weight.shape))
    scale = unswizzle(scale, *grid) if getattr(weight, "is_swizzled_scales", False) else scale.reshape(grid)
    global_scale, input_scale = (getattr(weight, f"{of}per_tensor_scale", None) for of in ("", "act_"))
    bias = None if linear.bias is None else linear.bias.detach()
    return Held(Quantized(layout, weight.qdata, scale, global_scale, input_scale), bias)


def hold_in(linear: nn.Linear, held: Held) -> None:
    """Give a layer with torchao's weights others of the same kind, of as many features as there are of them."""
    like: Any = linear.weight
    names, said = like.__tensor_flatten__()
    q = held.weight
    parts = {
        "qdata": q.codes,
        "scale": in_lines(q.scale) if said.get("is_swizzled_scales") else q.scale,
        "zero_point": torch.zeros_like(q.scale, dtype=torch.int8),
        "per_tensor_scale": q.global_scale,
        "act_per_tensor_scale": q.input_scale,
    }
    if isinstance(said["block_size"], list):
        block = [side or size for side, size in zip(q.layout.block, q.shape, strict=True)]
        said = {**said, "block_size": block}
    weight = type(like).__tensor_unflatten__({name: parts[name] for name in names}, said, q.shape, (q.shape[1], 1))
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if held.bias is not None:
        linear.bias = nn.Parameter(held.bias, requires_grad=False)
    linear.out_features, linear.in_features = q.shape


def layout_of(weight: Any) -> Layout | None:
    """Of torchao's weight; None of a plain one, or of a kind that is not known."""
    kind = type(weight).__name__
    if kind in BLOCKS:
        layout = BLOCKS[kind]
        return layout if (weight.block_size, weight.qdata.dtype) == (layout.block[1], layout.format.dtype) else None
    if kind not in ELEMENTS or getattr(weight, "zero_point", torch.zeros(())).any():
        return None
    rows, columns = weight.shape
    sides = {(1, columns): (1, WHOLE), (rows, columns): (WHOLE, WHOLE)}.get(tuple(weight.block_size))
    return None if sides is None else Layout(ELEMENTS[kind], sides)
