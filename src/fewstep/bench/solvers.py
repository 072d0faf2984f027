"""Better solvers for a pipeline's own call, so that a student is compared with the best that fewer steps can do.

For a flow pipeline fewstep's samplers are dressed as a scheduler: the pipeline asks for times, sends each prediction to
`step`, and gets back the next point to denoise. A sampler is a pure function that calls its denoiser, so it can't wait
for the pipeline; instead it is run again from the first noise, answered from the predictions so far, until it asks
for one that is not there yet. That is exact, needs no threads and costs a few vector operations.
Other pipelines get the diffusers scheduler of that kind.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from torch import Tensor

from fewstep.diffusion.samplers import SAMPLERS
from fewstep.diffusion.schedule import Schedule
from fewstep.errors import InputError, bad_value

# Name -> the steps that `evaluations` denoiser calls allow: Heun evaluates twice a step, but once in the last.
STEPS: dict[str, Callable[[int], int]] = {
    "dpmpp_2m": lambda evaluations: evaluations,
    "unipc": lambda evaluations: evaluations,
    "heun": lambda evaluations: (evaluations + 1) // 2,
}
_DIFFUSERS: dict[str, Any] = {"dpmpp_2m": DPMSolverMultistepScheduler, "unipc": UniPCMultistepScheduler}


class _Asked(Exception):
    """The sampler asks for a prediction that is not there yet."""

    def __init__(self, x: Tensor, t: float) -> None:
        self.x, self.t = x, t


class _Replay:
    """A denoiser that answers from a list of predictions and raises `_Asked` at its end."""

    schedule = Schedule.flow()

    def __init__(self, predictions: list[Tensor]) -> None:
        self._left = iter(predictions)

    def __call__(self, x_t: Tensor, t: Tensor | float, cond: Any = None) -> Tensor:
        prediction = next(self._left, None)
        if prediction is None:
            raise _Asked(x_t, float(torch.as_tensor(t).flatten()[0]))
        return prediction


class FlowSolver(FlowMatchEulerDiscreteScheduler):  # type: ignore[misc]
    """The flow scheduler of a pipeline with one of fewstep's samplers in the place of Euler's step."""

    sampler = "dpmpp_2m"
    timesteps: Tensor

    @functools.wraps(FlowMatchEulerDiscreteScheduler.set_timesteps)  # pipelines look at the signature
    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        """The pipeline's own times; `timesteps` are those at which the sampler evaluates (Heun: some twice)."""
        super().set_timesteps(*args, **kwargs)
        self._times = [float(s) for s in self.sigmas]
        self._start: Tensor | None = None
        self._predictions: list[Tensor] = []
        asked = _evaluation_times(self.sampler, self._times)
        self.timesteps = torch.tensor(asked, device=self.timesteps.device) * self.config.num_train_timesteps
        self.num_inference_steps = len(asked)

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True, **_: Any
    ) -> tuple[Tensor]:
        """The next point to denoise, or after the last prediction x0."""
        self._start = sample.float() if self._start is None else self._start
        self._predictions.append(model_output.float())
        try:
            point = SAMPLERS[self.sampler](_Replay(self._predictions), self._start, self._times)
        except _Asked as asked:
            point = asked.x
        return (point.to(model_output.dtype),)


def _evaluation_times(sampler: str, times: list[float]) -> list[float]:
    """The times at which `sampler` calls its denoiser, found by letting it run on a zero."""
    zero = torch.zeros(1, 1)
    asked: list[float] = []
    while True:
        try:
            SAMPLERS[sampler](_Replay([zero] * len(asked)), zero, times)
            return asked
        except _Asked as request:
            asked.append(request.t)


def install(pipe: Any, solver: str) -> None:
    """Give `pipe` the solver of that name, on the times its own scheduler would use.

    Raises:
        InputError: no such solver, or the pipeline's scheduler allows none of that kind.
    """
    if solver not in STEPS:
        raise InputError(bad_value("solver", "a row", f"one of {', '.join(STEPS)}", solver))
    config = pipe.scheduler.config
    if isinstance(pipe.scheduler, FlowMatchEulerDiscreteScheduler):
        kind: Any = type(f"Flow_{solver}", (FlowSolver,), {"sampler": solver})
        pipe.scheduler = kind.from_config(config)
    elif solver in _DIFFUSERS and _DIFFUSERS[solver] in getattr(pipe.scheduler, "compatibles", []):
        pipe.scheduler = _DIFFUSERS[solver].from_config(config)
    else:
        raise InputError(f"There is no {solver} solver for a pipeline with {type(pipe.scheduler).__name__}.")
