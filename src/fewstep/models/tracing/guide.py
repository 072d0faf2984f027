"""How a pipeline combines its branches before the scheduler sees them, found by least squares and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from fewstep.diffusion.guidance import combine
from fewstep.errors import TraceError

Rule = Literal["linear", "rescale", "norm"]


@dataclass(frozen=True)
class Guidance:
    """prediction = sign · rule(Σ weight·branch).

    The rules: `linear` is the sum itself. `norm` gives each token (last axis) of the sum the length of the cond
    branch's (Qwen-Image). `rescale` blends in, by `phi`, the sum with the spread of the cond branch (arXiv 2305.08891,
    eq. 15–16).
    """

    weights: Mapping[str, float]
    sign: float = 1.0
    rule: Rule = "linear"
    phi: float = 0.0

    def __call__(self, branches: Mapping[str, Tensor]) -> Tensor:
        total = _sum(branches, self.weights)
        if self.rule == "norm":
            total = total * (_length(branches["cond"]) / _length(total))
        elif self.rule == "rescale":
            total = total * (self.phi * _spread(branches["cond"]) / _spread(total) + (1 - self.phi))
        return total if self.sign == 1 else total * self.sign

    def unguided(self) -> Guidance:
        """The cond branch alone, in the same sign."""
        return Guidance({"cond": 1.0}, self.sign)


def fit_guidance(outputs: Sequence[Sequence[Tensor]], inputs: Sequence[Tensor]) -> Guidance:
    """The guidance that made `inputs` (one a step) of `outputs` (for each step, one a branch).

    Branch names are cond (the largest weight), uncond, and extra_1, … in the order of the calls.

    Raises:
        TraceError: no rule explains the inputs, the branches can't be told apart, or the weights change over steps.
    """
    tolerance = 100 * max(torch.finfo(y.dtype).eps for y in [*inputs, *outputs[0]])
    for fit in (_linear, _norm, _rescale):
        found = fit(outputs, inputs, tolerance)
        if found is not None:
            return found
    steps = [_solve([branches], [y])[0] for branches, y in zip(outputs, inputs, strict=True)]
    fits = [_off(branches, y, w) <= tolerance for branches, y, w in zip(outputs, inputs, steps, strict=True)]
    if all(fits):
        shown = "; ".join(", ".join(f"{weight:.4g}" for weight in w) for w in steps)
        raise TraceError(f"The guidance weights change over the steps ({shown}).")
    raise TraceError(
        "What reached the scheduler is not made of the denoiser's outputs in a way that is known: "
        "not a weighted sum, nor one with its length or spread restored."
    )


def explains(guidance: Guidance, branches: Mapping[str, Tensor], y: Tensor) -> bool:
    """Whether the guidance makes y of these branches."""
    tolerance = 1000 * max(torch.finfo(t.dtype).eps for t in (y, *branches.values()))
    return _gap(guidance(branches), y) <= tolerance


def _sum(branches: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Σ weight·branch. Weights that add up to 1 are applied to differences, as pipelines do: it rounds far less."""
    others = [name for name in weights if name != "cond"]
    if len(others) in (0, len(weights)) or abs(sum(weights.values()) - 1) > 1e-9:
        return combine(branches, weights)
    base = branches[others[0]]
    total = base + weights["cond"] * (branches["cond"] - base)
    for name in others[1:]:
        total = total + weights[name] * (branches[name] - base)
    return total


def _linear(outputs: Sequence[Sequence[Tensor]], inputs: Sequence[Tensor], tolerance: float) -> Guidance | None:
    weights, doubt = _solve(outputs, inputs)
    if any(_off(branches, y, weights) > tolerance for branches, y in zip(outputs, inputs, strict=True)):
        return None
    rounded = [_rounded(weight, doubt) for weight in weights]
    sign = -1.0 if abs(sum(rounded) + 1) < 1e-4 else 1.0
    return Guidance(_named([sign * weight for weight in rounded]), sign)


def _norm(outputs: Sequence[Sequence[Tensor]], inputs: Sequence[Tensor], tolerance: float) -> Guidance | None:
    """Each token of y points where the sum points: nothing of the sum is across y, which gives the weights' ratio."""
    if len(outputs[0]) != 2:
        return None
    across = []
    for branches, y in zip(outputs, inputs, strict=True):
        unit = torch.nn.functional.normalize(y.double(), dim=-1)
        wide = torch.stack([b.double() for b in branches])
        across.append((wide - (wide * unit).sum(-1, keepdim=True) * unit).flatten(1))
    _, _, axes = torch.linalg.svd(torch.cat(across, dim=1).T, full_matrices=False)
    return _scaled(axes[-1].tolist(), outputs, inputs, tolerance, "norm")


def _rescale(outputs: Sequence[Sequence[Tensor]], inputs: Sequence[Tensor], tolerance: float) -> Guidance | None:
    """Each sample of y is the sum, scaled: the scale tells phi."""
    if len(outputs[0]) != 2:
        return None
    sample = _solve([[b[:1] for b in outputs[0]]], [inputs[0][:1]])[0]
    return _scaled(sample, outputs, inputs, tolerance, "rescale")


def _scaled(
    direction: Sequence[float],
    outputs: Sequence[Sequence[Tensor]],
    inputs: Sequence[Tensor],
    tolerance: float,
    rule: Rule,
) -> Guidance | None:
    """The guidance of that rule whose weights are along `direction` and add up to 1, if it makes the inputs."""
    total = sum(direction)
    if abs(total) < 1e-6:
        return None
    weights = _named([_rounded(w / total, 1e-3) for w in direction])
    order = list(weights)
    for sign in (1.0, -1.0):
        guidance = Guidance(weights, sign, rule)
        if rule == "rescale":
            guidance = replace(guidance, phi=_phi(guidance, dict(zip(order, outputs[0], strict=True)), inputs[0]))
        made = (guidance(dict(zip(order, branches, strict=True))) for branches in outputs)
        if all(_gap(ours, y) <= 10 * tolerance for ours, y in zip(made, inputs, strict=True)):
            return guidance
    return None


def _phi(guidance: Guidance, branches: Mapping[str, Tensor], y: Tensor) -> float:
    plain = _sum(branches, guidance.weights).double()
    scale = float((guidance.sign * y.double() * plain)[:1].sum() / (plain * plain)[:1].sum())
    full = float((_spread(branches["cond"].double()) / _spread(plain)).flatten()[0])
    return _rounded((scale - 1) / (full - 1), 1e-3) if full != 1 else 0.0


def _solve(outputs: Sequence[Sequence[Tensor]], inputs: Sequence[Tensor]) -> tuple[list[float], float]:
    """Weights by least squares over all elements and steps, and how far rounding may have moved them."""
    columns = [torch.cat([branches[i].double().flatten() for branches in outputs]) for i in range(len(outputs[0]))]
    matrix = torch.stack(columns, dim=1)
    y = torch.cat([y.double().flatten() for y in inputs])
    eps = max(torch.finfo(t.dtype).eps for t in [*inputs, *outputs[0]])
    spread = torch.linalg.svdvals(matrix)
    # Rounding moves each element by about eps, this way or that; the weakest direction of the branches enlarges it.
    doubt = float(64 * eps * matrix.norm() / spread[-1]) / len(y) ** 0.5 if spread[-1] > 0 else float("inf")
    if doubt > 1e-2 and len(columns) > 1:
        raise TraceError(
            "The guidance branches gave the same output but for rounding, so their weights can't be told apart: "
            "trace with a prompt that differs from the negative prompt."
        )
    weights: list[float] = torch.linalg.lstsq(matrix, y[:, None]).solution[:, 0].tolist()
    return weights, doubt


def _rounded(weight: float, doubt: float) -> float:
    """The number of the fewest decimals within the doubt: guidance scales are written by people."""
    for decimals in range(7):
        if abs(round(weight, decimals) - weight) <= max(doubt, 1e-6):
            return round(weight, decimals)
    return weight


def _named(weights: Sequence[float]) -> dict[str, float]:
    if len(weights) == 1:
        return {"cond": weights[0]}
    ranked = sorted(range(len(weights)), key=lambda i: weights[i], reverse=True)
    if weights[ranked[0]] - weights[ranked[1]] < 1e-3:
        raise TraceError(
            f"Two branches have the largest guidance weight, {weights[ranked[0]]:g}: which is the prompt's?"
        )
    names, extras = {ranked[0]: "cond", ranked[1] if len(ranked) == 2 else -1: "uncond"}, 0
    for i in range(len(weights)):
        if i not in names:
            extras += 1
            names[i] = f"extra_{extras}"
    return {names[i]: weights[i] for i in range(len(weights))}


def _off(branches: Sequence[Tensor], y: Tensor, weights: Sequence[float]) -> float:
    ours = sum((w * b.double() for w, b in zip(weights, branches, strict=True)), torch.zeros((), dtype=torch.float64))
    # A guided sum is a small difference of large terms: their size sets how finely y is known.
    size = max(float((w * b).abs().max()) for w, b in zip(weights, branches, strict=True))
    return float((ours - y.double()).abs().max()) / max(size, 1e-30)


def _gap(ours: Tensor, y: Tensor) -> float:
    return float((ours.double() - y.double()).abs().max()) / max(float(y.abs().max()), 1e-30)


def _length(x: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return length


def _spread(x: Tensor) -> Tensor:
    return x.std(dim=list(range(1, x.dim())), keepdim=True)
