"""Classifier-free guidance (arXiv 2207.12598) as one weighted sum of branches.

The field writes it in two ways: uncond + s·(cond − uncond) and cond + w·(cond − uncond), where s = w + 1. Both are the
weights {cond: s, uncond: 1 − s}, and so is every other scheme that is linear in its branches.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fewstep.errors import InputError


def combine(branches: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Σ weight·branch, shape of one branch. Branches of weight 0 are not touched.

    Raises:
        InputError: no weight at all, or one for a branch that is not there.
    """
    missing = [name for name, weight in weights.items() if weight and name not in branches]
    used = [(branches[name], weight) for name, weight in weights.items() if weight and name in branches]
    if missing or not used:
        raise InputError(f"Guidance needs a branch for each weight {dict(weights)}. Got branches {sorted(branches)}.")
    total = used[0][0] * used[0][1]
    for branch, weight in used[1:]:
        total = total + branch * weight
    return total


def cfg_weights(scale: float) -> dict[str, float]:
    """Weights of uncond + scale·(cond − uncond), the scale of diffusers; 1 is no guidance."""
    return {"cond": scale, "uncond": 1.0 - scale}


def scale_from_extra(extra: float) -> float:
    """The diffusers scale of the form cond + extra·(cond − uncond)."""
    return extra + 1.0


def extra_from_scale(scale: float) -> float:
    """The inverse of `scale_from_extra`."""
    return scale - 1.0
