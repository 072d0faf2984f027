"""How far pictures moved from the baseline's of the same seeds.

That says nothing of how good they are as a set: fewer steps may give other pictures that are as good. For that a task's
oracle is asked.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fewstep.errors import InputError

Array = NDArray[Any]
SAME = 100.0  # dB: the PSNR reported for pictures that do not differ, and for differences too small to matter


def psnr(pictures: Array, baseline: Array) -> float:
    """Peak signal-to-noise ratio in dB, the mean over pictures, each at most `SAME`.

    pictures, baseline: (..., height, width, channels), values in [0, 1].

    Raises:
        InputError: the shapes differ.
    """
    a, b = _pairs(pictures, baseline)
    error = np.maximum(((a - b) ** 2).mean(axis=(1, 2, 3)), 10 ** (-SAME / 10))
    return float(np.mean(-10 * np.log10(error)))


def ssim(pictures: Array, baseline: Array) -> float:
    """Structural similarity in [-1, 1], the mean over pictures (Wang et al. 2004; Gaussian window, 11 pixels, σ = 1.5).

    pictures, baseline: (..., height, width, channels), values in [0, 1].

    Raises:
        InputError: the shapes differ, or a side is shorter than the window.
    """
    a, b = (torch.from_numpy(x).permute(0, 3, 1, 2) for x in _pairs(pictures, baseline))
    if min(a.shape[-2:]) < 11:
        raise InputError(f"SSIM needs pictures of at least 11×11 pixels. Got {tuple(a.shape[-2:])}.")
    mean_a, mean_b = _blur(a), _blur(b)
    var_a, var_b = _blur(a * a) - mean_a**2, _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    likeness = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return float((likeness / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean())


def _blur(x: Tensor) -> Tensor:
    """The Gaussian window over every channel, without padding: (n, c, h − 10, w − 10)."""
    offsets = torch.arange(-5, 6, dtype=x.dtype)
    window = torch.exp(-(offsets**2) / (2 * 1.5**2))
    window = (window / window.sum()).expand(x.shape[1], 1, 1, 11)
    x = F.conv2d(x, window, groups=x.shape[1])
    return F.conv2d(x, window.transpose(2, 3), groups=x.shape[1])


def _pairs(pictures: Array, baseline: Array) -> tuple[Array, Array]:
    if pictures.shape != baseline.shape or pictures.ndim < 4:
        raise InputError(f"Pictures are compared in pairs of one shape. Got {pictures.shape} and {baseline.shape}.")
    shape = (-1, *pictures.shape[-3:])
    return pictures.reshape(shape).astype(np.float64), baseline.reshape(shape).astype(np.float64)
