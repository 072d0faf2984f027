"""Which tokens of a prediction still move: each has its own last computed steps, a forecast from them, and what error
that forecast must have gathered since."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewstep.models.grid import Grid

LEAST = 0.05  # of the mean rate: a token that stood still once is looked at again all the same


@dataclass(frozen=True)
class Activity:
    """What one guidance branch knows of its tokens.

    Attributes:
        last, before: the predictions, (batch, tokens, features), of each token's last two computed steps.
        sigma, sigma_before: the noise levels of these, (batch, tokens).
        rate: how far the forecast of a token misses, as a part of the prediction's root mean square, per unit of sigma,
            (batch, tokens).
    """

    last: Tensor
    before: Tensor
    sigma: Tensor
    sigma_before: Tensor
    rate: Tensor


def begun(prediction: Tensor, sigma: float) -> Activity:
    """After the first computed step."""
    sigmas = torch.full(prediction.shape[:2], sigma, device=prediction.device, dtype=torch.float32)
    return Activity(prediction, prediction, sigmas, sigmas, torch.zeros_like(sigmas))


def forecast(known: Activity, sigma: float) -> Tensor:
    """Each token at noise level `sigma`, on the line through its last two computed steps; the last one where there is
    but one."""
    apart = known.sigma - known.sigma_before
    ahead = torch.where(apart == 0, 0.0, (sigma - known.sigma) / torch.where(apart == 0, 1.0, apart))
    return known.last + ahead[..., None].to(known.last.dtype) * (known.last - known.before)


def learned(known: Activity, prediction: Tensor, computed: Tensor | None, sigma: float) -> Activity:
    """After a step in which the tokens of the mask `computed`, (batch, tokens), were computed; None: all of them."""
    missed = (prediction - forecast(known, sigma)).float().square().mean(2).sqrt()
    size = prediction.float().square().mean().sqrt()
    rate = missed / size / (known.sigma - sigma).abs().clamp(min=1e-6)
    now = replace(
        known,
        last=prediction,
        before=known.last,
        sigma=torch.full_like(known.sigma, sigma),
        sigma_before=known.sigma,
        rate=rate,
    )
    if computed is None:
        return now
    return Activity(
        torch.where(computed[..., None], now.last, known.last),
        torch.where(computed[..., None], now.before, known.before),
        torch.where(computed, now.sigma, known.sigma),
        torch.where(computed, now.sigma_before, known.sigma_before),
        torch.where(computed, now.rate, known.rate),
    )


def owed(known: Activity, sigma: float, grid: Grid) -> Tensor:
    """The error that each token's forecast is expected to make at `sigma`, (batch, tokens).

    It grows with the noise levels since the token was computed, so that none waits for ever; what moves may move to its
    neighbours."""
    rate = torch.maximum(known.rate, LEAST * known.rate.mean(1, keepdim=True).clamp(min=1e-6))
    return grid.with_neighbours(rate * (known.sigma - sigma).abs())


def largest(owing: Tensor, count: int) -> Tensor:
    """The `count` tokens that owe most in each sample, rising, (batch, count)."""
    return owing.topk(count).indices.sort().values
