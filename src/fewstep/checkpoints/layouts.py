"""The layouts that formats share, by the names of `SCHEMES`, and pieces that every reader needs."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from fewstep.checkpoints.stored import Stored
from fewstep.errors import CheckpointError
from fewstep.numerics.quantized import WHOLE, Layout, Quantized
from fewstep.numerics.schemes import PER_TENSOR, SCHEMES

NVFP4 = SCHEMES["nvfp4"].weight
MXFP8 = SCHEMES["mxfp8"].weight
FP8_TENSOR = SCHEMES["fp8-dynamic-tensor"].weight
FP8_ROW = SCHEMES["fp8-dynamic"].weight
INT8_ROW = SCHEMES["int8-dynamic"].weight
INT8_TENSOR = Layout("int8", PER_TENSOR)
SHORT = {
    NVFP4: "nvfp4",
    MXFP8: "mxfp8",
    FP8_TENSOR: "fp8, a scale a tensor",
    FP8_ROW: "fp8, a scale a row",
    INT8_ROW: "int8, a scale a row",
    INT8_TENSOR: "int8, a scale a tensor",
}


def called(layout: Layout) -> str:
    """A few words for people."""
    rows, columns = (side or "all" for side in layout.block)
    return SHORT.get(layout, f"{layout.element}, {layout.scale} scales of {rows}×{columns}")


def scalar(tensor: Tensor) -> Tensor:
    """A float32 scalar, however many sides of 1 it was stored with.

    Raises:
        ValueError: it holds more than one number.
    """
    if tensor.numel() != 1 or not tensor.is_floating_point():
        raise ValueError(f"a scale of a whole tensor is {tuple(tensor.shape)} {tensor.dtype}, not one float32 number")
    return tensor.float().reshape(())


def powers_of_two(tensor: Tensor) -> Tensor:
    """Scales of e8m0, which many writers store as plain bytes."""
    return tensor.view(torch.float8_e8m0fnu) if tensor.dtype == torch.uint8 else tensor


def per_tensor_or_row(codes: Tensor, scale: Tensor) -> tuple[Layout, Tensor]:
    """The layout of 8-bit codes with float32 scales, told by how many scales there are; and those as its grid.

    Raises:
        ValueError: neither one scale nor one for every row.
    """
    per_tensor, per_row = (INT8_TENSOR, INT8_ROW) if codes.dtype == torch.int8 else (FP8_TENSOR, FP8_ROW)
    rows = codes.shape[0]
    if scale.dtype != torch.float32 or scale.numel() not in (1, rows) or scale.dim() > 2:
        raise ValueError(f"its scales are {tuple(scale.shape)} {scale.dtype}, right would be 1 or {rows} of float32")
    whole = scale.numel() == 1 and not (rows == 1 and scale.dim())
    return (per_tensor, scale.reshape(1, 1)) if whole else (per_row, scale.reshape(rows, 1))


def only(layout: Layout, known: Iterable[Layout], path: str, name: str) -> None:
    """Refuse a layout that a format has no word for.

    Raises:
        CheckpointError: it is none of `known`.
    """
    if layout not in tuple(known):
        raise CheckpointError(
            f"The format {name} can't hold the layer {path}, which is {called(layout)}; it holds "
            f"{'; '.join(called(one) for one in known)}."
        )


def refuse_rest(stored: Stored, used: set[str], suffixes: tuple[str, ...]) -> None:
    """Every scale must be used, and every weight of few bits must have its scales.

    Raises:
        CheckpointError: a scale without its weight, or a weight without its scales.
    """
    for name in stored.where:
        if name in used:
            continue
        if name.endswith(suffixes):
            raise CheckpointError(f"{stored.path}: the tensor {name} belongs to no layer; every scale must be used.")
        if stored.shape(name).dtype in (torch.uint8, torch.int8, torch.float8_e4m3fn, torch.float8_e5m2):
            raise CheckpointError(
                f"{stored.path}: the tensor {name} has numbers of 8 bits or fewer, but no scale says what they mean."
            )


def other_nibble_first(packed: Tensor) -> Tensor:
    """Both halves of every byte in each other's place; its own inverse."""
    return packed >> 4 | packed << 4


def is_whole(q: Quantized) -> bool:
    """Whether one scale serves the whole matrix."""
    return q.layout.block == (WHOLE, WHOLE)
