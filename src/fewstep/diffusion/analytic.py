"""Gaussian mixtures: distributions whose denoiser is known exactly, so that solvers and students can be measured.

If x0 ~ Σ w_k N(mu_k, s_k²), then x_t = alpha·x0 + sigma·noise is such a mixture too, and E[x0 | x_t] has a closed form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.diffusion.schedule import Schedule, Time
from fewstep.errors import InputError


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """Σ w_k N(mu_k, s_k²·1): `means` (k, d), `stds` (k,) ≥ 0, `weights` (k,) that sum to 1."""

    means: Tensor
    stds: Tensor
    weights: Tensor

    def __post_init__(self) -> None:
        k = len(self.means)
        if self.means.dim() != 2 or self.stds.shape != (k,) or self.weights.shape != (k,):
            shapes = tuple(self.means.shape), tuple(self.stds.shape), tuple(self.weights.shape)
            raise InputError(f"A mixture needs means (k, d), stds (k,) and weights (k,). Got {shapes}.")
        if bool((self.stds < 0).any()) or bool((self.weights < 0).any()) or abs(float(self.weights.sum()) - 1) > 1e-5:
            raise InputError("A mixture's stds must not be negative and its weights must sum to 1.")

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n draws, shape (n, d)."""
        which = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.means.shape[1], dtype=self.means.dtype, generator=generator)
        return self.means[which] + self.stds[which, None] * noise

    def log_prob(self, x: Tensor) -> Tensor:
        """log density at x of shape (n, d): shape (n,)."""
        return _joint_log_prob(x, self.means, self.stds**2, self.weights).logsumexp(dim=1)

    def noised(self, schedule: Schedule, t: float) -> GaussianMixture:
        """The distribution of x_t."""
        alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
        return GaussianMixture(alpha * self.means, ((alpha * self.stds) ** 2 + sigma**2).sqrt(), self.weights)

    def denoiser(self, schedule: Schedule) -> MixtureDenoiser:
        return MixtureDenoiser(self, schedule)


@dataclass(frozen=True, eq=False)
class MixtureDenoiser:
    """The exact `Denoiser` of a mixture. `cond`, of shape (batch,), names the component that x0 comes from."""

    mixture: GaussianMixture
    schedule: Schedule

    def __call__(self, x_t: Tensor, t: Time, cond: Any = None) -> Tensor:
        return self.schedule.from_x0(self.x0(x_t, t, cond), x_t, t)

    def x0(self, x_t: Tensor, t: Time, cond: Tensor | None = None) -> Tensor:
        """E[x0 | x_t, cond], shape (batch, d)."""
        alpha = self.schedule.alpha(t).to(x_t.dtype).reshape(-1, 1)
        sigma = self.schedule.sigma(t).to(x_t.dtype).reshape(-1, 1)
        means, stds = self.mixture.means.to(x_t.dtype), self.mixture.stds.to(x_t.dtype)
        variance = (alpha * stds) ** 2 + sigma**2  # (batch or 1, k)
        per_mean = means + (alpha * stds**2 / variance)[..., None] * (x_t[:, None] - alpha[..., None] * means)
        if cond is not None:
            return per_mean[torch.arange(len(x_t)), cond]
        joint = _joint_log_prob(x_t, alpha[..., None] * means, variance, self.mixture.weights.to(x_t.dtype))
        return (joint.softmax(dim=1)[..., None] * per_mean).sum(dim=1)


def _joint_log_prob(x: Tensor, means: Tensor, variance: Tensor, weights: Tensor) -> Tensor:
    """log(w_k N(x; mu_k, variance_k)): x (n, d), means ([n,] k, d), variance ([n,] k) -> (n, k)."""
    d = x.shape[1]
    distance = (x[:, None] - means).square().sum(dim=-1)
    return weights.log() - 0.5 * (distance / variance + d * (2 * math.pi * variance).log())
