"""The mask of an inpainting call, as tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.models.grid import Grid, aspect_grid


def as_mask(given: Any) -> Tensor:
    """A mask as diffusers' pipelines take it, a PIL picture, an array or a tensor, or a list of them for a batch: 1
    where any of them is more than half, (height, width)."""
    parts = given if isinstance(given, list | tuple) else [given]
    grey = [part.convert("L") if hasattr(part, "convert") else part for part in parts]
    planes = [part.cpu() if isinstance(part, Tensor) else torch.from_numpy(np.array(part)) for part in grey]
    tops = [plane.float() / (255 if plane.dtype == torch.uint8 else 1) for plane in planes]
    return torch.stack([top.reshape(-1, *top.shape[-2:]).amax(0) for top in tops]).amax(0).gt(0.5).float()


def covered(mask: Tensor, grid: Grid, aspect: float) -> Tensor:
    """Which tokens a mask covers, with those that touch them, (tokens,)."""
    frames, plane = (
        (grid.shape[:-2], grid.shape[-2:]) if len(grid.shape) > 1 else ((), aspect_grid(grid.tokens, aspect))
    )
    tokens = F.adaptive_max_pool2d(mask[None, None], plane)
    wide = F.max_pool2d(tokens, 3, stride=1, padding=1)[0, 0] > 0
    return wide.expand(*frames, *plane).reshape(-1)
