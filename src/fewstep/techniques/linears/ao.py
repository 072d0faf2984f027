"""torchao's quantized linear layers, one config a scheme."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import nn

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


def torchao_linear(linear: nn.Linear, scheme: str) -> nn.Linear:
    """A layer beside `linear`, with torchao's weights of a scheme in `CONFIGS`; `linear` itself keeps its own."""
    from torchao.quantization import quantize_

    beside = nn.Linear(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
    beside.weight, beside.bias = linear.weight, linear.bias
    quantize_(beside, CONFIGS[scheme].make(linear.weight.dtype))
    return beside
