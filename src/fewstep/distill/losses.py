"""What a student is asked for, and how far off it is: pure functions, computed in float32 or wider."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from fewstep.diffusion.schedule import Schedule, Time, shaped
from fewstep.errors import InputError, bad_value

Weighting = Literal["velocity", "x0", "snr"]


def step_target(schedule: Schedule, x_t: Tensor, t: Tensor, x_s: Tensor, s: Tensor) -> Tensor:
    """The x0 with which one DDIM (for a flow: Euler) step from x_t at t lands on x_s at s < t.

    It solves x_t = alpha_t·x0 + sigma_t·noise, x_s = alpha_s·x0 + sigma_s·noise for x0 (arXiv 2202.00512, appendix G).
    For a flow it means the velocity (x_t − x_s) / (t − s). Times of shape (batch,) or (batch, frames); shape of x_t.
    """
    alpha_t, sigma_t, alpha_s, sigma_s = (
        shaped(coefficient(time), x_t).to(x_t.device, torch.float32)
        for time in (t, s)
        for coefficient in (schedule.alpha, schedule.sigma)
    )
    return (sigma_t * x_s.float() - sigma_s * x_t.float()) / (alpha_s * sigma_t - alpha_t * sigma_s)


def squared(difference: Tensor) -> Tensor:
    """Mean square of each sample: (batch, …) -> (batch,)."""
    return difference.float().square().flatten(1).mean(dim=1)


def pseudo_huber(difference: Tensor, c: float) -> Tensor:
    """√(mean square + c²) − c of each sample: (batch, …) -> (batch,).

    Quadratic below c and linear above, so a few hard samples do not rule the gradient (arXiv 2310.14189, section 3.3,
    with the mean in place of the sum over dimensions: its c = 0.00054·√d is 0.00054 here).
    """
    return (squared(difference) + c**2).sqrt() - c


def weight(schedule: Schedule, weighting: Weighting, t: Time) -> Tensor:
    """What an error in x0 counts at t, before squaring: float64, shape of t.

    `velocity`: (alpha + sigma)/sigma, the error in v = noise − x0; for a flow, of the state that a step leads to.
    `x0`: 1. `snr`: max(alpha/sigma, 1), the truncated signal-to-noise weight of arXiv 2202.00512, equation 9.
    """
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    if weighting == "velocity":
        return (alpha + sigma) / sigma
    if weighting == "snr":
        return (alpha / sigma).clamp(min=1.0)
    return torch.ones_like(alpha)


@dataclass(frozen=True)
class Distance:
    """How far a student's x0 is from the wanted one. `huber`: the c of `pseudo_huber`, or 0 for the mean square.

    Raises:
        InputError: an unknown weighting or a negative `huber`.
    """

    weighting: Weighting = "velocity"
    huber: float = 0.0

    def __post_init__(self) -> None:
        if self.weighting not in get_args(Weighting):
            raise InputError(bad_value("weighting", "the loss", f"one of {get_args(Weighting)}", self.weighting))
        if not self.huber >= 0:
            raise InputError(bad_value("huber", "the loss", "0 or above", self.huber))

    def __call__(self, schedule: Schedule, prediction: Tensor, x_t: Tensor, t: Tensor, x0: Tensor) -> Tensor:
        """Mean over the batch, a scalar: `prediction` at x_t (batch, …) and t against the wanted x0."""
        guess = schedule.to_x0(prediction.float(), x_t.float(), t)
        counts = shaped(weight(schedule, self.weighting, t), guess).to(guess)
        difference = counts * (guess - x0.float())
        return (pseudo_huber(difference, self.huber) if self.huber else squared(difference)).mean()
