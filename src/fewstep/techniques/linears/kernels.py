"""Which kernel runs which scheme on which device: a table, what it says of a machine, and what its layers hold."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from fewstep.machine import Machine
from fewstep.models.fingerprint import plain_tensors
from fewstep.numerics.quantized import WHOLE
from fewstep.numerics.schemes import Scheme
from fewstep.techniques.linears.ao import held_in, hold_in, layout_of, torchao_linear
from fewstep.techniques.linears.emulated import EmulatedLinear
from fewstep.techniques.linears.held import Held
from fewstep.techniques.linears.int8 import Int8Linear, can_pack, has_amx, rounded_input

Own = Int8Linear | EmulatedLinear  # layers that have no parameters
Tile = tuple[int, int]  # what a weight's rows and columns must be multiples of


def _int8_missing() -> str | None:
    if can_pack():
        return None
    return f"torch {torch.__version__} no longer has the INT8 kernel that Quantize uses: install torch 2.13."


def _torchao_missing() -> str | None:
    return None if find_spec("torchao") else "Quantize needs torchao on this machine: install fewstep[quantize]."


@dataclass(frozen=True)
class Kernel:
    """What runs a scheme for real on one kind of device.

    Attributes:
        make: a layer that runs it, from a plain one.
        feature: what the machine needs, in the words of `Machine`; None: nothing but the device.
        tile: sizes of the weight must be multiples of this, beside what the scheme's own blocks ask for.
        only: the only dtype of weights that it takes; None for any.
        missing: what keeps this installation from having it, in one sentence; None where it is there.
        rounded: how it rounds a layer's input where it does other than the scheme says.
    """

    make: Callable[[nn.Linear], nn.Module]
    feature: str | None = None
    tile: int = 1
    only: torch.dtype | None = None
    missing: Callable[[], str | None] = _torchao_missing
    rounded: Callable[[Tensor], Tensor] | None = None


def _ao(scheme: str, feature: str | None = None, tile: int = 1, only: torch.dtype | None = None) -> Kernel:
    return Kernel(partial(torchao_linear, scheme=scheme), feature, tile, only)


# The FP8 and FP4 products take sizes that are multiples of 16 and 32. MXFP8 came with the same GPUs as NVFP4. torchao's
# INT4 is another arithmetic (a zero point for each group), and low-rank branches pay with fused kernels only.
KERNELS: dict[tuple[str, str], Kernel] = {
    ("int8-dynamic", "cpu"): Kernel(
        Int8Linear, "int8", missing=_int8_missing, rounded=None if has_amx() else rounded_input
    ),
    ("int8-dynamic", "cuda"): _ao("int8-dynamic", "int8"),
    ("fp8-dynamic", "cuda"): _ao("fp8-dynamic", "fp8", 16),
    ("fp8-dynamic-tensor", "cuda"): _ao("fp8-dynamic-tensor", "fp8", 16),
    ("mxfp8", "cuda"): _ao("mxfp8", "nvfp4", 32, torch.bfloat16),
    ("nvfp4", "cuda"): _ao("nvfp4", "nvfp4", 32, torch.bfloat16),
    ("int8-weight-only", "cuda"): _ao("int8-weight-only"),
    ("fp8-weight-only", "cuda"): _ao("fp8-weight-only"),
    ("nvfp4-weight-only", "cuda"): _ao("nvfp4-weight-only", None, 16),
}


def problem(scheme: Scheme, machine: Machine) -> str | None:
    """Why `scheme` can't run for real on `machine` and what would be right, in one sentence; None if it can."""
    kernel = KERNELS.get((scheme.name, machine.device))
    if kernel is not None:
        return _lacks(kernel, machine)
    features = {other.feature for (name, _), other in KERNELS.items() if name == scheme.name and other.feature}
    for feature in features:  # where that is the scheme's own number format, the machine says best what it lacks
        if scheme.name.startswith(feature) and (missing := machine.missing(feature)):
            return missing
    here = [name for (name, device), k in KERNELS.items() if device == machine.device and _lacks(k, machine) is None]
    elsewhere = sorted({device for name, device in KERNELS if name == scheme.name})
    advice = [f"use {' or '.join(here)} here"] if here else []
    advice += [f"run it on {' or '.join(elsewhere)}"] if elsewhere else []
    return (
        f"No kernel that fewstep uses runs {scheme.name} on the device {machine.device!r}: "
        f"{', '.join([*advice, 'or set emulate to see its quality without its speed'])}."
    )


def _lacks(kernel: Kernel, machine: Machine) -> str | None:
    return (machine.missing(kernel.feature) if kernel.feature else None) or kernel.missing()


def tile(scheme: Scheme, device: str, *, emulate: bool) -> Tile:
    """What the rows and columns of a weight must be multiples of: the blocks' sides, bytes, and the kernel's own."""
    kernel = None if emulate else KERNELS.get((scheme.name, device))
    layouts = [layout for layout in (scheme.weight, scheme.input) if layout is not None]
    columns = [side for layout in layouts for side in (layout.block[1], 8 // layout.format.bits) if side != WHOLE]
    rows = scheme.weight.block[0] or 1
    own = kernel.tile if kernel else 1
    return math.lcm(own, rows), math.lcm(own, *columns)


def convert(
    linear: nn.Linear, scheme: Scheme, device: str, *, emulate: bool, smooth: Tensor | None = None
) -> nn.Module:
    """`linear` under `scheme`: by the kernel of the device, or as that kernel would round it, emulated."""
    kernel = KERNELS.get((scheme.name, device))
    if emulate or kernel is None:
        return EmulatedLinear(linear, scheme, smooth, kernel.rounded if kernel else None)
    return kernel.make(linear)


def is_quantized(layer: nn.Module) -> bool:
    """Whether `held_by` knows what a layer holds; told without unpacking it."""
    return isinstance(layer, Own) or (type(layer) is nn.Linear and layout_of(layer.weight) is not None)


def held_by(layer: nn.Module) -> Held | None:
    """What a quantized linear layer holds; None of any other."""
    if isinstance(layer, Own):
        return layer.held
    return held_in(layer) if type(layer) is nn.Linear else None


def hold(layer: nn.Module, held: Held) -> None:
    """Put other numbers of the same scheme into a layer of which `held_by` is not None."""
    if isinstance(layer, Own):
        layer.hold(held)
    elif isinstance(layer, nn.Linear):
        hold_in(layer, held)


def stored_bytes(module: nn.Module) -> int:
    """Bytes of a module's weights as they are stored, those inside torchao's tensors counted."""
    return sum(map(_own_bytes, module.modules()))


def _own_bytes(layer: nn.Module) -> int:
    if isinstance(layer, Own):
        return layer.stored_bytes
    return sum(inner.nbytes for weight in layer.parameters(recurse=False) for inner in plain_tensors(weight))
