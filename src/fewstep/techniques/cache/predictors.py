"""What stands in for a step that is not computed: a linear combination of what the last computed steps gave.

Newton's divided differences interpolate truly, at any order and between steps of any length. The Taylor series on the
step index of 2503.06923 does not from order two on: on k² it gives 213 where 225 is right. `fitted` are the weights
that erred least in a calibration: least squares on the outputs' Gram matrix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.calibrate.gram import lagrange
from fewstep.calibrate.stack import Kept

RIDGE = 1e-9  # of the outputs' squares, so that two steps that gave the same do not make the weights infinite


@dataclass(frozen=True)
class Predictor:
    """Weights of the last `order` + 1 computed steps; of fewer as long as fewer are known.

    The weights are those of the polynomial through them in sigma, or, `fitted`, those of a plan.
    """

    order: int
    fitted: bool = False

    def weights(self, sigmas: Sequence[float], at: float) -> list[float]:
        """Of the values at the last of these noise levels, the latest last."""
        return lagrange(sigmas[-self.order - 1 :], at)

    def pairs(self, sigmas: Tensor, outputs: Tensor, before: Tensor, step: int) -> Tensor:
        """The weights for `step` of each pair of last computed steps, (pairs, 2).

        Args:
            sigmas: noise levels, (steps,) or more.
            outputs: Gram matrix of what each step gives, (steps, steps).
            before: the pairs' steps, (pairs, 2); the first is -1 where there is one step alone.
        """
        i, j = before.unbind(1)
        alone = (i < 0) | (self.order == 0)
        if self.fitted:
            old, new = outputs[i, i] * (1 + RIDGE), outputs[j, j] * (1 + RIDGE)
            cross, a, b = outputs[i, j], outputs[i, step], outputs[j, step]
            scale = old * new - cross * cross
            both = torch.stack([(a * new - b * cross) / scale, (b * old - a * cross) / scale], 1)
            one = torch.stack([torch.zeros_like(b), b / new], 1)
        else:
            part = (sigmas[step] - sigmas[j]) / (sigmas[i] - sigmas[j])
            both = torch.stack([part, 1 - part], 1)
            one = torch.tensor([0.0, 1.0], dtype=both.dtype).expand_as(both)
        return torch.where(alone[:, None], one, both)


def combined(weights: Sequence[float], kept: Sequence[Kept]) -> Kept:
    """The combination of the last of what was kept, the latest last; as it is where that is one value of weight 1."""
    known = kept[-len(weights) :]
    if list(weights) == [1.0]:
        return known[0]
    return {
        path: {name: _sum(weights, [one[path][name] for one in known]) for name in streams}
        for path, streams in known[-1].items()
    }


def _sum(weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    total = values[0] * weights[0]
    for weight, value in zip(weights[1:], values[1:], strict=True):
        total = total.add_(value, alpha=weight)
    return total


PREDICTORS: Mapping[str, Predictor] = {
    "last": Predictor(0),
    "linear": Predictor(1),
    "quadratic": Predictor(2),
    "cubic": Predictor(3),
    "fitted": Predictor(1, fitted=True),
}
