"""Samplers: pure functions that carry noise to data with a `Denoiser` along a list of falling times.

All share one signature, `sampler(denoiser, x, times, cond=None)`; `x` of shape (batch, …) is the state at times[0] and
the result is the state at times[-1], which is x0 when that is `schedule.end`. Between two times they ask the denoiser
once (`heun` twice), so n + 1 times cost n calls.

The probability flow of any schedule is a rectified flow in x/(alpha + sigma) over u = sigma/(alpha + sigma). So Euler
and Heun have one formula for every schedule, with no special case where alpha or sigma is 0; Euler there is DDIM.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fewstep.diffusion.schedule import Denoiser, Schedule
from fewstep.errors import InputError, bad_value

Sampler = Callable[..., Tensor]
Generators: TypeAlias = torch.Generator | Sequence[torch.Generator] | None


def euler(denoiser: Denoiser, x: Tensor, times: Sequence[float], cond: Any = None) -> Tensor:
    """First order: DDIM (arXiv 2010.02502) for a VP schedule, Euler for a flow."""
    for t, s in _steps(times):
        x0, noise = _look(denoiser, x, t, cond)
        x = denoiser.schedule.add_noise(x0, noise, s)
    return x


def heun(denoiser: Denoiser, x: Tensor, times: Sequence[float], cond: Any = None) -> Tensor:
    """Second order, two calls a step, in the rescaled flow (arXiv 2206.00364, algorithm 1, in sigma).

    A step to sigma = 0 is Euler's, as there.
    """
    schedule = denoiser.schedule
    for t, s in _steps(times):
        x0, noise = _look(denoiser, x, t, cond)
        euler_x = schedule.add_noise(x0, noise, s)
        if _mix(schedule, s)[1] == 0:  # no noise is left to ask the denoiser about
            x = euler_x
            continue
        (alpha_t, sigma_t), (alpha_s, sigma_s) = _mix(schedule, t), _mix(schedule, s)
        x0_s, noise_s = _look(denoiser, euler_x, s, cond)
        velocity = (noise - x0 + noise_s - x0_s) / 2
        du = sigma_s / (alpha_s + sigma_s) - sigma_t / (alpha_t + sigma_t)
        x = (alpha_s + sigma_s) * (x / (alpha_t + sigma_t) + du * velocity)
    return x


def dpmpp_2m(denoiser: Denoiser, x: Tensor, times: Sequence[float], cond: Any = None) -> Tensor:
    """DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2): second order, one call a step, in lambda = log(alpha / sigma).

    Where lambda is infinite (pure noise, clean data) the step is of first order, as the paper's first step is.
    """
    schedule = denoiser.schedule
    last_x0, last_h = x, 0.0
    for i, (t, s) in enumerate(_steps(times)):
        x0, _ = _look(denoiser, x, t, cond)
        h = float(schedule.lam(s) - schedule.lam(t))
        guess = x0
        if i > 0 and math.isfinite(h) and math.isfinite(last_h):
            guess = x0 + (h / last_h) / 2 * (x0 - last_x0)
        x = _hold_x0(schedule, x, t, s, guess)
        last_x0, last_h = x0, h
    return x


def unipc(denoiser: Denoiser, x: Tensor, times: Sequence[float], cond: Any = None, order: int = 2) -> Tensor:
    """UniPC (arXiv 2302.04867), data prediction: predictor and corrector that share one call a step.

    Each call's x0 first corrects the step that led to it, then helps to predict the next. x0 is a polynomial in
    lambda = log(alpha / sigma) through the last `order` calls (the corrector has one more), integrated exactly; steps
    from pure noise and to clean data, where lambda is infinite, hold it constant.
    """
    schedule = denoiser.schedule
    known: list[tuple[float, Tensor]] = []  # (lambda, x0) of the last calls, the newest last
    last_t, last_x = math.inf, x
    for t, s in _steps(times):
        x0, _ = _look(denoiser, x, t, cond)
        known = [*known[-order:], (float(schedule.lam(t)), x0)]
        if len(known) > 1:
            x = _exponential_step(schedule, last_x, last_t, t, known)
        last_t, last_x = t, x
        x = _exponential_step(schedule, x, t, s, known[-order:])
    return x


def renoise(
    denoiser: Denoiser, x: Tensor, times: Sequence[float], cond: Any = None, generator: Generators = None
) -> Tensor:
    """Few-step sampling as in consistency models (arXiv 2303.01469, algorithm 1): guess x0, noise it anew, repeat.

    `generator` is one for the batch, or one per sample so that a sample does not depend on its batch.
    """
    schedule = denoiser.schedule
    for t, s in _steps(times):
        x0, _ = _look(denoiser, x, t, cond)
        x = schedule.add_noise(x0, _noise_like(x0, generator), s) if _mix(schedule, s)[1] > 0 else x0
    return x


SAMPLERS: dict[str, Sampler] = {"euler": euler, "heun": heun, "dpmpp_2m": dpmpp_2m, "unipc": unipc, "renoise": renoise}
ORDERS: dict[str, int] = {"euler": 1, "heun": 2, "dpmpp_2m": 2, "unipc": 2, "renoise": 1}


def sampler(name: str) -> Sampler:
    """The sampler of that name.

    Raises:
        InputError: there is none.
    """
    if name not in SAMPLERS:
        raise InputError(bad_value("sampler", "sampling", f"one of {', '.join(SAMPLERS)}", name))
    return SAMPLERS[name]


def nfe(name: str, steps: int) -> int:
    """Denoiser calls (guidance branches not counted) of `steps` steps that end at sigma = 0."""
    sampler(name)
    return 2 * steps - 1 if name == "heun" else steps


def flow_times(steps: int, shift: float = 1.0) -> list[float]:
    """`steps` + 1 times of a flow from 1 to 0, t' = shift·t / (1 + (shift − 1)·t): those of diffusers' flow schedulers.

    Raises:
        InputError: steps < 1 or shift ≤ 0.
    """
    if steps < 1:
        raise InputError(bad_value("steps", "flow_times", "at least 1", steps))
    if not shift > 0:
        raise InputError(bad_value("shift", "flow_times", "above 0", shift))
    even = [1 - i / steps for i in range(steps)]
    return [*(shift * t / (1 + (shift - 1) * t) for t in even), 0.0]


def _steps(times: Sequence[float]) -> list[tuple[float, float]]:
    values = [float(t) for t in times]
    steps = list(pairwise(values))
    if not steps or any(s >= t for t, s in steps):
        raise InputError(bad_value("times", "a sampler", "at least two falling numbers", values))
    return steps


def _look(denoiser: Denoiser, x: Tensor, t: float, cond: Any) -> tuple[Tensor, Tensor]:
    """What the denoiser thinks x is made of: (x0, noise)."""
    prediction = denoiser(x, t, cond)
    return denoiser.schedule.to_x0(prediction, x, t), denoiser.schedule.to_noise(prediction, x, t)


def _mix(schedule: Schedule, t: float) -> tuple[float, float]:
    return float(schedule.alpha(t)), float(schedule.sigma(t))


def _hold_x0(schedule: Schedule, x: Tensor, t: float, s: float, x0: Tensor) -> Tensor:
    """From t to s with x0 constant on the way."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = _mix(schedule, t), _mix(schedule, s)
    return (sigma_s / sigma_t) * (x - alpha_t * x0) + alpha_s * x0


def _exponential_step(
    schedule: Schedule, x: Tensor, t: float, s: float, known: Sequence[tuple[float, Tensor]]
) -> Tensor:
    """From t to s with x0(lambda) the polynomial through `known`."""
    lam_s, h = float(schedule.lam(s)), float(schedule.lam(s) - schedule.lam(t))
    finite = [(lam - lam_s, x0) for lam, x0 in known if math.isfinite(lam - lam_s)]
    if not finite:
        return _hold_x0(schedule, x, t, s, known[-1][1])
    alpha_s, sigma_s = _mix(schedule, s)
    x = (sigma_s / _mix(schedule, t)[1]) * x
    for weight, (_, x0) in zip(_integration_weights(h, [place for place, _ in finite]), finite, strict=True):
        x = x + alpha_s * weight * x0
    return x


def _integration_weights(h: float, nodes: Sequence[float]) -> list[float]:
    """w_j with Σ w_j·p(node_j) = ∫ e^a·p(a) da over a from −h to 0, for every polynomial p of degree < len(nodes)."""
    faded = math.exp(-h)
    moments = [1 - faded]
    for k in range(1, len(nodes)):
        moments.append(-(faded * (-h) ** k if faded else 0.0) - k * moments[-1])
    powers = torch.tensor([[node**k for node in nodes] for k in range(len(nodes))], dtype=torch.float64)
    weights: list[float] = torch.linalg.solve(powers, torch.tensor(moments, dtype=torch.float64)).tolist()
    return weights


def _noise_like(x: Tensor, generator: Generators) -> Tensor:
    if generator is None or isinstance(generator, torch.Generator):
        device = x.device if generator is None else generator.device
        return torch.randn(x.shape, dtype=x.dtype, device=device, generator=generator).to(x.device)
    if len(generator) != len(x):
        raise InputError(bad_value("generator", "renoise", f"one, or one for each of {len(x)} samples", len(generator)))
    rows = [torch.randn(x.shape[1:], dtype=x.dtype, device=g.device, generator=g) for g in generator]
    return torch.stack(rows).to(x.device)
