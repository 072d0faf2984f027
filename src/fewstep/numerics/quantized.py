"""The canonical quantized tensor: codes, linear scales, and a `Layout` that says how they belong together.

Every checkpoint format is read into this and written from it, and every emulated scheme is made of it, so what a
number means is decided in this file alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from fewstep.errors import InputError
from fewstep.numerics.elements import E4M3, ELEMENTS, Element

ScaleKind = Literal["float32", "e4m3", "e8m0"]
SCALES: tuple[ScaleKind, ...] = ("float32", "e4m3", "e8m0")
WHOLE = 0  # as a side of a block: all of the tensor's


@dataclass(frozen=True)
class Layout:
    """How a matrix (rows, columns) is quantized.

    Attributes:
        element: name of the number format of a value, one of `ELEMENTS`.
        block: rows and columns that share a scale; `WHOLE` for all of them. (1, WHOLE) is a scale for every row.
        scale: number format of the scales. With `e4m3` there is a global float32 scale too, as in NVFP4; `e8m0` are
            powers of two, as in MXFP8.
    """

    element: str
    block: tuple[int, int]
    scale: ScaleKind = "float32"

    def __post_init__(self) -> None:
        if self.element not in ELEMENTS or self.scale not in SCALES or min(self.block) < 0:
            raise InputError(
                f"A layout has an element of {', '.join(ELEMENTS)}, a scale of {', '.join(SCALES)} and a block of two "
                f"sizes from 0 up. Got {self.element!r}, {self.scale!r} and {self.block}."
            )

    @property
    def format(self) -> Element:
        return ELEMENTS[self.element]

    def grid(self, shape: tuple[int, int]) -> tuple[int, int]:
        """How many scales a matrix of `shape` has down and across.

        Raises:
            InputError: the blocks don't divide it.
        """
        sides = [size if block == WHOLE else block for size, block in zip(shape, self.block, strict=True)]
        if any(size % side for size, side in zip(shape, sides, strict=True)) or shape[1] * self.format.bits % 8:
            raise InputError(f"A matrix of {shape[0]}×{shape[1]} can't be cut into blocks of {sides[0]}×{sides[1]}.")
        return shape[0] // max(sides[0], 1), shape[1] // max(sides[1], 1)


@dataclass(frozen=True)
class Quantized:
    """A matrix in few bits: value = code · scale of its block · global_scale.

    Attributes:
        codes: (rows, columns), or (rows, columns/2) with two numbers of 4 bits in a byte, low nibble first.
        scale: `layout.grid(shape)`, row by row (never swizzled); float32, float8_e4m3fn or float8_e8m0fnu.
        global_scale: a float32 scalar where `layout.scale` is `e4m3`, else None.
        input_scale: a float32 scalar: the calibrated scale of the layer's input; None where that is dynamic or not
            quantized. For NVFP4 it is the input's global scale.
    """

    layout: Layout
    codes: Tensor
    scale: Tensor
    global_scale: Tensor | None = None
    input_scale: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.codes.shape
        return rows, columns * 8 // self.layout.format.bits

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (self.codes, self.scale, self.global_scale, self.input_scale) if t is not None)

    def faults(self) -> list[str]:
        """What is wrong with it in itself, a clause each: shapes, types, scales that no encoder makes."""
        found = []
        if self.codes.dtype != self.layout.format.dtype:
            found.append(f"its codes are {self.codes.dtype}, not {self.layout.format.dtype}")
        try:
            grid = self.layout.grid(self.shape)
        except InputError as error:
            return [*found, str(error)]
        if tuple(self.scale.shape) != grid:
            found.append(f"its scales are {tuple(self.scale.shape)}, not {grid}")
        if self.scale.dtype != SCALE_TYPES[self.layout.scale]:
            found.append(f"its scales are {self.scale.dtype}, not {SCALE_TYPES[self.layout.scale]}")
        if (self.global_scale is not None) != (self.layout.scale == "e4m3"):
            found.append("it has no global scale" if self.global_scale is None else "it has a global scale too many")
        for name, scale in (
            ("scale", self.scale),
            ("global scale", self.global_scale),
            ("input scale", self.input_scale),
        ):
            if scale is None:
                continue
            values = scale.float()
            if not values.isfinite().all():
                found.append(f"a {name} is not a finite number")
            elif (values < 0).any():
                found.append(f"a {name} is negative")
        if self.codes.dtype == torch.float8_e4m3fn and self.codes.float().isnan().any():
            found.append("a weight is not a number")
        return found


SCALE_TYPES: dict[ScaleKind, torch.dtype] = {
    "float32": torch.float32,
    "e4m3": torch.float8_e4m3fn,
    "e8m0": torch.float8_e8m0fnu,
}


def quantize(x: Tensor, layout: Layout, amax: Tensor | None = None) -> Quantized:
    """`x` (rows, columns) in `layout`, its scales taken from its largest values.

    Args:
        amax: the largest |x| from which a scale of the whole tensor is taken (that of a `WHOLE` matrix, and the global
            one of `e4m3` scales: amax / (448 · 6) for NVFP4); without it, that of `x`. Layers that a kernel fuses must
            share one.

    Raises:
        InputError: the blocks don't divide `x`.
    """
    blocks = _blocked(x.float(), layout)
    each = blocks.abs().amax((1, 3))
    largest = layout.format.largest
    global_scale: Tensor | None = None
    if layout.scale == "e8m0":
        scale = _power_of_two(each / largest)
    elif layout.scale == "e4m3":
        global_scale = _not_zero((each.amax() if amax is None else amax.float()) / (largest * E4M3.largest))
        scale = (each / (largest * global_scale)).clamp(2.0**-9, E4M3.largest).to(torch.float8_e4m3fn)
    else:
        beside = each if amax is None or layout.block != (WHOLE, WHOLE) else amax.float().reshape(1, 1)
        scale = _not_zero(beside / largest)
    whole = scale.float() if global_scale is None else scale.float() * global_scale
    values = _unblocked(blocks / whole[:, None, :, None])
    return Quantized(layout, layout.format.encode(values), scale, global_scale)


def outline(layout: Layout, shape: tuple[int, int]) -> Quantized:
    """What `quantize` makes of a matrix of `shape`, on the meta device.

    Raises:
        InputError: the blocks don't divide it.
    """
    grid, element = layout.grid(shape), layout.format
    codes = torch.empty(shape[0], shape[1] * element.bits // 8, dtype=element.dtype, device="meta")
    scale = torch.empty(grid, dtype=SCALE_TYPES[layout.scale], device="meta")
    return Quantized(layout, codes, scale, torch.empty((), device="meta") if layout.scale == "e4m3" else None)


def dequantize(q: Quantized) -> Tensor:
    """The values that `q` stands for, (rows, columns) float32."""
    scale = q.scale.float() if q.global_scale is None else q.scale.float() * q.global_scale
    values = _blocked(q.layout.format.decode(q.codes), q.layout)
    return _unblocked(values * scale[:, None, :, None])


def fake(x: Tensor, layout: Layout, amax: Tensor | None = None) -> Tensor:
    """`x` (…, columns) rounded to what `layout` can hold, in its own dtype: quantized and read back at once."""
    return dequantize(quantize(x.flatten(0, -2), layout, amax)).view(x.shape).to(x.dtype)


def with_input_scale(q: Quantized, input_scale: Tensor | None) -> Quantized:
    return replace(q, input_scale=input_scale)


def _blocked(x: Tensor, layout: Layout) -> Tensor:
    """(rows, columns) → (down, rows of a block, across, columns of a block)."""
    down, across = layout.grid((x.shape[0], x.shape[1]))
    return x.reshape(down, x.shape[0] // down, across, x.shape[1] // across)


def _unblocked(blocks: Tensor) -> Tensor:
    return blocks.flatten(2).flatten(0, 1)


def _not_zero(scale: Tensor) -> Tensor:
    """Where all values are 0 any scale will do."""
    return torch.where(scale > 0, scale, 1.0)


def _power_of_two(least: Tensor) -> Tensor:
    """The smallest power of two that is not below `least`, as e8m0: 2^-127 to 2^127."""
    mantissa, exponent = torch.frexp(_not_zero(least))  # least = mantissa · 2^exponent, mantissa in [0.5, 1)
    power = torch.where(mantissa == 0.5, exponent - 1, exponent).clamp(-127, 127)
    return (power + 127).to(torch.uint8).view(torch.float8_e8m0fnu)
