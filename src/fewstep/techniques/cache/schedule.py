"""Which steps of a request to compute: the best of all choices of so many, by a calibration and dynamic programming.

DPCache's idea, with its cost made exact: the error of a forecast is a combination of the outputs of a full run, so its
size follows from their Gram matrix, and so does that of a whole stretch of reused steps, in which errors add up with
their signs. What an error grows to until the end is measured (`gains`): early ones decide what is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.calibrate.gram import size
from fewstep.techniques.cache.predictors import Predictor


@dataclass(frozen=True)
class Plan:
    """Steps to compute, and the error that reusing the others is expected to leave in the latents."""

    computed: tuple[int, ...]
    error: float


def damages(sigmas: Tensor, outputs: Tensor, predictor: Predictor, gains: Tensor) -> Tensor:
    """What reusing all steps between two computed ones does to the latents at the end.

    Args:
        sigmas: noise levels of the T steps, and the last one, 0: (T + 1,), float64.
        outputs: Gram matrix of what reaches the scheduler, (T, T).
        predictor: of order 0 or 1.
        gains: what an error at each step grows to until the end, (T,).

    Returns:
        (T + 1, T, T + 1): `[i + 1, j, l]`, where `i` < `j` are the last two computed steps (i = -1: one alone) and
        `l` > `j` is the next one (T: none); infinite where that is no order.
    """
    total = len(sigmas) - 1
    before = torch.tensor([(i, j) for j in range(total) for i in range(-1, j)])
    found = torch.full((total + 1, total, total + 1), float("inf"), dtype=torch.float64)
    error = torch.zeros(len(before), total, dtype=torch.float64)
    row = torch.arange(len(before))
    for step in range(total + 1):
        past = before[:, 1] < step
        found[before[past, 0] + 1, before[past, 1], step] = size(outputs, error[past])
        if step == total:
            break
        missed = torch.zeros_like(error)
        missed[:, step] = 1.0
        weights = predictor.pairs(sigmas, outputs, before, step)
        missed[row, before[:, 1]] -= weights[:, 1]
        missed[row, before[:, 0].clamp(min=0)] -= torch.where(before[:, 0] < 0, 0.0, weights[:, 0])
        error[past] += gains[step] * (sigmas[step + 1] - sigmas[step]) * missed[past]
    return found


def weights_of(
    plan: Plan, sigmas: Tensor, outputs: Tensor, predictor: Predictor
) -> dict[int, tuple[tuple[int, ...], list[float]]]:
    """For each reused step of a plan the last computed steps and their weights, the latest last."""
    found = {}
    for step in range(len(sigmas) - 1):
        known = [one for one in plan.computed if one < step][-2:]
        if step in plan.computed or not known:
            continue
        pair = torch.tensor([[-1, known[0]] if len(known) == 1 else known])
        both = predictor.pairs(sigmas, outputs, pair, step)[0].tolist()
        went_with = tuple(known[-predictor.order - 1 :])
        found[step] = (went_with, both[-len(went_with) :])
    return found


def plans(damage: Tensor, most: int, *, first: int = 1) -> list[Plan]:
    """The best plan for each number of computed steps, up to `most`, of those that begin with the `first` steps and
    end with the last one.

    Bellman's recursion over the last two computed steps. The damages of different stretches are taken as independent:
    their squares add.
    """
    total, squares = len(damage) - 1, damage.square()
    start = (first - 2, first - 1)
    best = torch.full((total + 1, total), float("inf"), dtype=torch.float64)  # [i + 1, j]
    best[start[0] + 1, start[1]] = 0.0
    came: list[Tensor] = []
    found = []
    for count in range(first, most + 1):
        if count > first:
            through = best[:, :, None] + squares[:, :total, :total]  # [i + 1, j, l]
            cheapest, origin = through.min(0)
            best = torch.full_like(best, float("inf"))
            best[1:, :] = cheapest  # now j is the one before the last
            came.append(origin)
        last = best[:, total - 1]
        if torch.isfinite(last).any():
            where = int(last.argmin())
            found.append(Plan(_path(came, where - 1, total - 1, first), float(last[where].sqrt())))
    return found


def _path(came: list[Tensor], i: int, j: int, first: int) -> tuple[int, ...]:
    steps = [j]
    for origin in reversed(came):
        steps.append(i)
        i, j = int(origin[i, j]) - 1, i
    return tuple(sorted({*range(first), *steps} - {-1}))
