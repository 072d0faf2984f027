"""How noise is mixed into data over time, and what a network's output means at each time.

Every schedule here is x_t = alpha(t)·x0 + sigma(t)·noise with noise ~ N(0, 1). A network predicts one of four things,
and with x_t each of them gives the other three; n stands for √(alpha² + sigma²):

    flow  v = noise − x0                    x0    = (x_t − sigma·v) / (alpha + sigma)
                                            noise = (x_t + alpha·v) / (alpha + sigma)
    v     v = (alpha·noise − sigma·x0) / n  x0    = (alpha·x_t − sigma·n·v) / n²
                                            noise = (sigma·x_t + alpha·n·v) / n²
    eps   noise                             x0    = (x_t − sigma·noise) / alpha
    x0    x0                                noise = (x_t − alpha·x0) / sigma

`flow` is rectified flow (arXiv 2209.03003), `v` the velocity of progressive distillation (arXiv 2202.00512), and `edm`
has alpha = 1 (arXiv 2206.00364).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from fewstep.errors import InputError, bad_value

Prediction = Literal["flow", "eps", "v", "x0"]
Kind = Literal["flow", "vp", "edm"]
Time = Tensor | float


@dataclass(frozen=True)
class Schedule:
    """x_t = alpha(t)·x0 + sigma(t)·noise, and what the network's output means. Make one by `flow`, `vp` or `edm`.

    A time is a float or a tensor of shape () or (batch,); larger is noisier. The frames of a video of shape (batch,
    channels, frames, …) may each have their own, (batch, frames). Coefficients are computed in float64.

    - flow: t in [0, 1], alpha = 1 − t, sigma = t.
    - vp: t is the training timestep, continuous in [−1, T − 1]; −1 is clean data. Between timesteps the angle
      atan2(sigma, alpha) is linear, which stays finite where alpha or sigma is 0.
    - edm: t ≥ 0 is sigma itself, alpha = 1.
    """

    kind: Kind
    prediction: Prediction
    angles: tuple[float, ...] = ()  # vp only: atan2(sigma, alpha) at t = −1, 0, …, T − 1

    def __post_init__(self) -> None:
        if self.prediction not in get_args(Prediction):
            raise InputError(bad_value("prediction", "Schedule", f"one of {get_args(Prediction)}", self.prediction))

    @classmethod
    def flow(cls, prediction: Prediction = "flow") -> Schedule:
        return cls("flow", prediction)

    @classmethod
    def vp(cls, alphas_cumprod: Tensor | Sequence[float], prediction: Prediction = "eps") -> Schedule:
        """From alpha(t)² at the training timesteps 0 … T − 1, shape (T,), falling, each in [0, 1].

        Raises:
            InputError: the values are not that.
        """
        squares = torch.as_tensor(alphas_cumprod, dtype=torch.float64).cpu()
        falling = squares.dim() == 1 and len(squares) > 0 and bool((squares.diff() < 0).all())
        if not falling or squares[0] >= 1 or squares[-1] < 0:
            raise InputError(
                bad_value("alphas_cumprod", "Schedule", "a falling sequence within [0, 1)", alphas_cumprod)
            )
        return cls("vp", prediction, (0.0, *torch.atan2((1 - squares).sqrt(), squares.sqrt()).tolist()))

    @classmethod
    def edm(cls, prediction: Prediction = "x0") -> Schedule:
        return cls("edm", prediction)

    @property
    def end(self) -> float:
        """The time of clean data, where sampling ends."""
        return -1.0 if self.kind == "vp" else 0.0

    def alpha(self, t: Time) -> Tensor:
        """The weight of x0 at t: float64, shape of `t`."""
        return self._mix(t)[0]

    def sigma(self, t: Time) -> Tensor:
        """The weight of the noise at t: float64, shape of `t`."""
        return self._mix(t)[1]

    def lam(self, t: Time) -> Tensor:
        """log(alpha / sigma), half the log signal-to-noise ratio: float64, shape of `t`; ±inf at the ends."""
        alpha, sigma = self._mix(t)
        return alpha.log() - sigma.log()

    def time_of(self, ratio: Time) -> Tensor:
        """The time at which sigma / alpha is `ratio` in [0, inf]: float64, shape of `ratio`."""
        ratio = _float64(ratio)
        if self.kind == "edm":
            return ratio
        if self.kind == "flow":
            return 1 - 1 / (1 + ratio)
        angle = ratio.atan()
        table = self._table.to(angle.device)
        low = (torch.searchsorted(table, angle) - 1).clamp(0, len(table) - 2)
        return (low - 1 + (angle - table[low]) / (table[low + 1] - table[low])).clamp(-1, len(table) - 2)

    def to_x0(self, prediction: Tensor, x_t: Tensor, t: Time) -> Tensor:
        """The x0 that `prediction` means at x_t: shape and dtype of x_t. Exact at every time at which it is defined.

        Raises:
            InputError: an eps prediction where alpha is 0, as x_t holds nothing of x0 there.
        """
        alpha, sigma = self._like(x_t, t)
        x, out = _wide(x_t), _wide(prediction)
        if self.prediction == "x0":
            x0 = out
        elif self.prediction == "flow":
            x0 = (x - sigma * out) / (alpha + sigma)
        elif self.prediction == "v":
            n = (alpha**2 + sigma**2).sqrt()
            x0 = (alpha / n**2) * x - (sigma / n) * out
        else:
            if bool((alpha == 0).any()):
                raise InputError(f"An eps prediction says nothing about x0 where alpha is 0. Got t = {t!r}.")
            x0 = (x - sigma * out) / alpha
        return x0.to(x_t.dtype)

    def to_noise(self, prediction: Tensor, x_t: Tensor, t: Time) -> Tensor:
        """The noise that `prediction` means at x_t: shape and dtype of x_t.

        Where sigma is 0, x_t holds no noise; an x0 prediction then gives its mean, 0.
        """
        alpha, sigma = self._like(x_t, t)
        x, out = _wide(x_t), _wide(prediction)
        if self.prediction == "eps":
            noise = out
        elif self.prediction == "flow":
            noise = (x + alpha * out) / (alpha + sigma)
        elif self.prediction == "v":
            n = (alpha**2 + sigma**2).sqrt()
            noise = (sigma / n**2) * x + (alpha / n) * out
        else:
            noise = _noise_left(out, x, alpha, sigma)
        return noise.to(x_t.dtype)

    def from_x0(self, x0: Tensor, x_t: Tensor, t: Time) -> Tensor:
        """The prediction that means this x0 at x_t: the inverse of `to_x0`, shape and dtype of x_t.

        Where sigma is 0 every prediction means x0 = x_t; the one whose noise is 0 is given.
        """
        alpha, sigma = self._like(x_t, t)
        clean = _wide(x0)
        noise = _noise_left(clean, _wide(x_t), alpha, sigma)
        if self.prediction == "x0":
            out = clean
        elif self.prediction == "flow":
            out = noise - clean
        elif self.prediction == "v":
            out = (alpha * noise - sigma * clean) / (alpha**2 + sigma**2).sqrt()
        else:
            out = noise
        return out.to(x_t.dtype)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Time) -> Tensor:
        """x_t: shape and dtype of x0."""
        alpha, sigma = self._like(x0, t)
        return (alpha * _wide(x0) + sigma * _wide(noise)).to(x0.dtype)

    @cached_property
    def _table(self) -> Tensor:
        return torch.tensor(self.angles, dtype=torch.float64)

    def _mix(self, t: Time) -> tuple[Tensor, Tensor]:
        t = _float64(t)
        if self.kind == "flow":
            return 1 - t, t
        if self.kind == "edm":
            return torch.ones_like(t), t
        table = self._table.to(t.device)
        place = (t + 1).clamp(0, len(table) - 1)
        low = place.floor().long().clamp(max=len(table) - 2)
        angle = torch.lerp(table[low], table[low + 1], place - low)
        return (math.pi / 2 - angle).sin(), angle.sin()  # cos(π/2) is not 0 in floating point; sin(0) is

    def _like(self, x: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        """alpha and sigma in the dtype we compute in, shaped to multiply x."""
        wide = _wide_dtype(x)
        alpha, sigma = (shaped(c, x).to(x.device, wide) for c in self._mix(t))
        return alpha, sigma


class Denoiser(Protocol):
    """What every model is to us: a prediction for x_t at t under a condition, with its schedule.

    `__call__` takes x_t of shape (batch, …), t as a float or shape () or (batch,), and returns the raw prediction in
    x_t's shape, guidance already inside. A causal one takes a time for each frame too, (batch, frames).
    """

    @property
    def schedule(self) -> Schedule: ...

    def __call__(self, x_t: Tensor, t: Time, cond: Any = None) -> Tensor: ...


def shaped(coefficient: Tensor, x: Tensor) -> Tensor:
    """What depends on the time, of shape (), (batch,) or (batch, frames), shaped to multiply x (batch, …)."""
    if coefficient.dim() == 0:
        return coefficient
    frames = (1, coefficient.shape[1]) if coefficient.dim() == 2 else ()
    return coefficient.view(len(coefficient), *frames, *[1] * (x.dim() - 1 - len(frames)))


def _noise_left(x0: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    safe = torch.where(sigma == 0, torch.ones_like(sigma), sigma)
    return torch.where(sigma == 0, torch.zeros_like(x_t), (x_t - alpha * x0) / safe)


def _float64(t: Time) -> Tensor:
    return t.to(torch.float64) if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64)


def _wide_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _wide(x: Tensor) -> Tensor:
    return x.to(_wide_dtype(x))
