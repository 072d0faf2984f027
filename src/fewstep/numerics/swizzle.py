"""The 128×4 layout of block scales that NVIDIA's tensor cores read, and its inverse.

Scales (rows, columns) are cut into tiles of 128×4, tile by tile along a row of tiles. In a tile, row r stands at place
(r mod 32, r div 32): 32 lines of 4·4 bytes. Source: cuBLAS, "1D block scaling factors layout".
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

TILE = (128, 4)


def padded(rows: int, columns: int) -> tuple[int, int]:
    """The sides of whole tiles that hold (rows, columns)."""
    return -rows % TILE[0] + rows, -columns % TILE[1] + columns


def swizzle(scales: Tensor) -> Tensor:
    """Scales of one byte each, (rows, columns) → (rows, columns) padded to whole tiles with zeros, swizzled."""
    rows, columns = scales.shape
    high, wide = padded(rows, columns)
    whole = F.pad(scales.contiguous().view(torch.uint8), (0, wide - columns, 0, high - rows))
    tiles = whole.view(high // 128, 4, 32, wide // 4, 4).permute(0, 3, 2, 1, 4)  # (down, across, 32, 4, 4)
    return tiles.reshape(high, wide).view(scales.dtype)


def in_lines(scales: Tensor) -> Tensor:
    """`swizzle` with the sides that torchao stores: a line of a tile beside those of the tiles across."""
    swizzled = swizzle(scales)
    return swizzled.reshape(swizzled.shape[0] // 4, swizzled.shape[1] * 4)


def unswizzle(swizzled: Tensor, rows: int, columns: int) -> Tensor:
    """The inverse of `swizzle`, whatever sides the same bytes were stored with; the padding is cut off."""
    return unswizzle_whole(swizzled, rows, columns)[:rows, :columns].contiguous()


def unswizzle_whole(swizzled: Tensor, rows: int, columns: int) -> Tensor:
    """The same with its padding, which a writer fills with zeros."""
    high, wide = padded(rows, columns)
    tiles = swizzled.contiguous().view(torch.uint8).view(high // 128, wide // 4, 32, 4, 4)
    return tiles.permute(0, 3, 2, 1, 4).reshape(high, wide).view(swizzled.dtype)
