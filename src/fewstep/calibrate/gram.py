"""Inner products between the steps of a run, from which the error of every linear forecast follows.

A cache that does not run the model at a step uses a linear combination of what it has: outputs of computed steps, the
latents. With G = V·Vᵀ, V's rows being what the model gave at each step of a full run, a combination with coefficients c
has the size √(c·G·cᵀ), so its error is known without a second run. G is small, and between noise levels it is smooth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

SAMPLE = 65_536  # entries of a tensor that go into an inner product: the same ones at each step
NODES = 4  # of the polynomial that goes from one set of noise levels to another


def sampled(value: Tensor) -> Tensor:
    """At most `SAMPLE` entries of a tensor, evenly over it, (m,), float32 on the CPU."""
    flat = value.detach().reshape(-1)
    step = max(1, math.ceil(flat.numel() / SAMPLE))
    return flat[::step].float().cpu()


def gram(rows: Sequence[Tensor]) -> Tensor:
    """Means of products, (steps, steps), float64, of vectors of one length."""
    stacked = torch.stack(list(rows)).double()
    return stacked @ stacked.T / stacked.shape[1]


def size(gram: Tensor, coefficients: Tensor) -> Tensor:
    """The root mean square of combinations: (..., steps) → (...)."""
    squared = torch.einsum("...s,st,...t->...", coefficients, gram, coefficients)
    return squared.clamp(min=0).sqrt()


def onto(known: Sequence[float], wanted: Sequence[float]) -> Tensor:
    """Weights that carry values at noise levels `known` (falling) to those at `wanted`, (wanted, known).

    Local Lagrange interpolation through the `NODES` nearest levels; outside of what is known the value at the end. A
    level that is known is taken as it is.
    """
    weights = torch.zeros(len(wanted), len(known), dtype=torch.float64)
    count = min(NODES, len(known))
    for row, level in zip(weights, wanted, strict=True):
        level = min(max(level, min(known)), max(known))
        after = sum(sigma > level for sigma in known)
        start = min(max(after - count // 2, 0), len(known) - count)
        for at, weight in enumerate(lagrange(known[start : start + count], level), start):
            row[at] = weight
    return weights


def lagrange(nodes: Sequence[float], at: float) -> list[float]:
    """Weights of the values at different `nodes` in the polynomial through them, at `at`."""
    return [
        math.prod((at - other) / (node - other) for k, other in enumerate(nodes) if k != i)
        for i, node in enumerate(nodes)
    ]
