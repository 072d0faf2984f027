"""How far samples are from the teacher's, without a task or a network: an energy distance on pooled features.

Both sets are of equal conditions, and draw k of a condition came from the same noise in both, as in a sample grid:

    distance(student, teacher)    # 0 on average for one distribution, 1 where they have nothing in common

It works on latents and on pixels, of points, rows, images and videos. It tells a student's steps apart from each other;
it is no Fréchet distance, and numbers of two models say nothing about each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.errors import InputError, bad_value

PLACES = 4  # along each axis: features say where in a sample something is as coarsely as this
AT_ONCE = 16  # samples: their detail takes a few times their own memory
POOL: dict[int, Callable[..., Tensor]] = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


def distance(x: Tensor, y: Tensor) -> float:
    """The energy distance of x to y, as a part of the most that it could be (Székely & Rizzo 2013), over `features`.

    Every scale counts the same: blur shows in the fine ones, layout in the coarse, and colours and contrast in all.

    Args:
        x, y: (conditions, draws, channels, …) with up to three more axes: rows, images, videos; in any unit, for the
            distance has none. Draws from the same noise in both. With one draw of each condition all are taken as
            draws of one; then it does not see which condition got which sample.

    NaN where a value is not finite.

    Raises:
        InputError: shapes that differ, or no two samples.
    """
    if x.shape != y.shape or not 3 <= x.dim() <= 6 or max(x.shape[:2]) < 2:
        rule = f"(conditions, draws, channels, …) like y, {tuple(y.shape)}, with 2 samples or more"
        raise InputError(bad_value("x", "distance", rule, tuple(x.shape)))
    if not (torch.isfinite(x).all() and torch.isfinite(y).all()):
        return math.nan
    if x.shape[1] == 1:
        x, y = x.transpose(0, 1), y.transpose(0, 1)
    parts = []
    for a, b in zip(_each(x), _each(y), strict=True):
        across = apart(a, b)
        parts.append(energy(a, b) / (2 * across) if across > 0 else 0.0)
    return sum(parts) / len(parts)


def energy(x: Tensor, y: Tensor) -> float:
    """2·E|X − Y| − E|X − X'| − E|Y − Y'| within each condition, the mean over conditions: x, y (conditions, draws, d).

    It is the squared maximum mean discrepancy of the kernel −|x − y| (arXiv 1207.6076), and this its unbiased estimate
    over pairs of draws i ≠ j in all three terms (Gretton et al. 2012, equation 4). So x_k and y_k may come from one
    noise: it is exactly 0 for x = y, 0 on average for one distribution, and below 0 in some draws.
    """
    return 2 * apart(x, y) - apart(x, x) - apart(y, y)


def apart(x: Tensor, y: Tensor) -> float:
    """E|x_i − y_j| over pairs of draws i ≠ j of one condition."""
    distances = torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist")
    pairs = ~torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
    return float(distances[:, pairs].mean())


def _each(x: Tensor) -> list[Tensor]:
    """The features of (conditions, draws, …) as (conditions, draws, d)."""
    flat = x.flatten(0, 1)
    parts = [features(flat[start : start + AT_ONCE]) for start in range(0, len(flat), AT_ONCE)]
    return [torch.cat(level).reshape(*x.shape[:2], -1) for level in zip(*parts, strict=True)]


def features(x: Tensor) -> list[Tensor]:
    """x (n, channels, …) -> features (n, d) float32, a list: the strength of detail at each scale, then the layout.

    Averages over halves of each axis give ever coarser samples (a Laplacian pyramid). What one has and the next lacks
    is its detail; how much of it there is at each of the `PLACES` is the feature, as in the first layer of a scattering
    network (arXiv 1203.1513). Where it is to the pixel is left to chance in a good student too.
    """
    low, found = x.float(), []
    while any(size > PLACES for size in low.shape[2:]):
        coarse = _pooled(low, [math.ceil(size / 2) if size > PLACES else size for size in low.shape[2:]])
        detail = (low - F.interpolate(coarse, size=low.shape[2:], mode="nearest")).abs()
        found.append(_pooled(detail, [min(size, PLACES) for size in low.shape[2:]]).flatten(1))
        low = coarse
    return [*found, low.flatten(1)]


def _pooled(x: Tensor, sizes: Sequence[int]) -> Tensor:
    pooled: Tensor = POOL[len(sizes)](x, tuple(sizes))
    return pooled
