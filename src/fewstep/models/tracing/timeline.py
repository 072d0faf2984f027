"""A scheduler's steps in the terms of `Schedule`: which one, at which times; it must make the first step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.diffusion.schedule import Prediction, Schedule
from fewstep.errors import InputError, TraceError
from fewstep.models.tracing.clock import Table

PREDICTIONS: dict[str, Prediction] = {
    "epsilon": "eps",
    "v_prediction": "v",
    "sample": "x0",
    "flow_prediction": "flow",
}


@dataclass(frozen=True)
class Timeline:
    """The recorded steps: step i carries x from `starts[i]` to `ends[i]`.

    `sign` is −1 for schedulers that count from data to noise: what they are given is the negative of the prediction.
    """

    schedule: Schedule
    starts: tuple[float, ...]
    ends: tuple[float, ...]
    sign: float = 1.0

    @property
    def times(self) -> tuple[float, ...]:
        """The starts, each once (solvers of higher order ask twice at a time), and the end."""
        return (*dict.fromkeys(self.starts), self.ends[-1])

    def size(self, i: int) -> float:
        """How large x is at step i, at least 1: rounding grows with it, as with sigma in sigma space."""
        t = self.starts[i]
        return max(1.0, math.hypot(float(self.schedule.alpha(t)), float(self.schedule.sigma(t))))

    def euler_step(self, i: int, x: Tensor, model_output: Tensor) -> Tensor:
        """What a first-order step makes of the scheduler's input at step i."""
        prediction = model_output * self.sign
        x0 = self.schedule.to_x0(prediction, x, self.starts[i])
        noise = self.schedule.to_noise(prediction, x, self.starts[i])
        return self.schedule.add_noise(x0, noise, self.ends[i])


def find_timeline(
    scheduler: Any, timesteps: Sequence[float], x: Tensor, model_output: Tensor, result: Tensor, tolerance: float
) -> Timeline:
    """The timeline whose first-order step makes `result`, the scheduler's first step from x. (Every solver's first is.)

    Raises:
        TraceError: there is none: a scheduler of another kind, or one that clips, thresholds or lands elsewhere.
    """
    name = type(scheduler).__name__
    best = float("inf")
    for line in _candidates(scheduler, timesteps):
        if line.starts[0] <= line.ends[0]:  # towards noise
            continue
        try:
            gap = line.euler_step(0, x, model_output).double() - result.double()
            error = float(gap.abs().max()) / line.size(0)
        except InputError:  # a prediction that is not defined at that time
            continue
        if error < tolerance:
            return line
        best = min(best, error)
    off = f"its first step is off by {best:.2g}" if best < float("inf") else "its noise levels are of no known form"
    raise TraceError(f"The steps of {name} are not those of a known schedule: {off} ({_suspects(scheduler)}).")


def sigma_table(scheduler: Any) -> Table | None:
    """(sigma, training timestep) of a scheduler in sigma space, for the clock."""
    squares = getattr(scheduler, "alphas_cumprod", None)
    if squares is None:
        return None
    squares = torch.as_tensor(squares, dtype=torch.float64)
    sigmas = ((1 - squares) / squares).sqrt()
    if not bool(torch.isfinite(sigmas).all()) or not bool((sigmas.diff() > 0).all()):
        return None
    return tuple(sigmas.tolist()), tuple(float(i) for i in range(len(sigmas)))


def _candidates(scheduler: Any, timesteps: Sequence[float]) -> Iterator[Timeline]:
    config = scheduler.config
    prediction = PREDICTIONS.get(getattr(config, "prediction_type", None) or "flow_prediction")
    sigmas = getattr(scheduler, "sigmas", None)
    squares = getattr(scheduler, "alphas_cumprod", None)
    if prediction is None:
        return
    if sigmas is not None:
        starts, ends = _sigma_steps(scheduler, sigmas, timesteps)
        flow = squares is None or getattr(config, "use_flow_sigmas", False) or prediction == "flow"
        if flow and max(starts) <= 1 + 1e-6:
            yield Timeline(Schedule.flow(prediction), starts, ends)
            back = [tuple(1 - s for s in row) for row in (starts, ends)]
            yield Timeline(Schedule.flow(prediction), back[0], back[1], sign=-1.0)
        yield Timeline(Schedule.edm(prediction), starts, ends)
        if squares is not None and (schedule := _vp(squares, prediction)):
            yield Timeline(
                schedule,
                tuple(_vp_time(schedule, s, told) for s, told in zip(starts, timesteps, strict=True)),
                tuple(float(schedule.time_of(s)) for s in ends),
            )
    elif squares is not None and (schedule := _vp(squares, prediction)):
        yield from (Timeline(schedule, tuple(timesteps), ends) for ends in _discrete_ends(scheduler, timesteps))


def _vp(squares: Any, prediction: Prediction) -> Schedule | None:
    try:
        return Schedule.vp(squares, prediction)
    except InputError:
        return None


def _vp_time(schedule: Schedule, ratio: float, timestep: float) -> float:
    """The scheduler's timestep where that has the noise level of the step, else the time that has."""
    exact = float(schedule.sigma(timestep) / schedule.alpha(timestep)) if timestep == round(timestep) else 0.0
    return timestep if abs(exact - ratio) <= 1e-5 * ratio else float(schedule.time_of(ratio))


def _sigma_steps(
    scheduler: Any, sigmas: Any, timesteps: Sequence[float]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Noise levels before and after each recorded step; the run may begin inside the scheduler's list."""
    levels = [float(sigma) for sigma in sigmas]
    all_steps = [float(t) for t in scheduler.timesteps]
    begin = getattr(scheduler, "begin_index", None)
    begins = range(len(all_steps) - len(timesteps) + 1) if begin is None else [begin]
    for i in begins:
        if all_steps[i : i + len(timesteps)] == list(timesteps) and len(levels) > i + len(timesteps):
            return tuple(levels[i : i + len(timesteps)]), tuple(levels[i + 1 : i + len(timesteps) + 1])
    raise TraceError(f"The steps were not taken in the order of {type(scheduler).__name__}'s own timesteps.")


def _discrete_ends(scheduler: Any, timesteps: Sequence[float]) -> Iterator[tuple[float, ...]]:
    """Where steps between training timesteps land: at the next one; the last at clean data, or at timestep 0."""
    distinct = list(dict.fromkeys(timesteps))
    clean = float(getattr(scheduler, "final_alpha_cumprod", 1.0)) == 1.0
    following = dict(zip(distinct, [*distinct[1:], -1.0 if clean else 0.0], strict=True))
    yield tuple(following[t] for t in timesteps)


def _suspects(scheduler: Any) -> str:
    names = ("prediction_type", "clip_sample", "thresholding", "timestep_spacing", "algorithm_type", "solver_order")
    shown = [f"{name}={getattr(scheduler.config, name)!r}" for name in names if hasattr(scheduler.config, name)]
    return ", ".join(shown) or "no settings that tell why"
