"""Running the pipeline's steps again with the traced denoiser: it is believed only if it gives the same latents."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fewstep.diffusion.samplers import euler
from fewstep.errors import TraceError
from fewstep.models.tracing.denoiser import TracedDenoiser
from fewstep.models.tracing.leaves import rebuild
from fewstep.models.tracing.moments import Moment
from fewstep.models.tracing.timeline import Timeline


def replay(
    denoiser: TracedDenoiser, scheduler: Any, moments: Sequence[Moment], timeline: Timeline, fold: int, tolerance: float
) -> float:
    """The largest difference between recorded latents and ours, over both replays, in the size of noisy latents.

    First a copy of the pipeline's scheduler steps on our predictions; then, where the recorded steps are of first
    order, `samplers.euler` walks the whole path on our schedule.

    Raises:
        TraceError: a difference above the tolerance; it names the step.
    """
    first_order = max(
        _apart(timeline.euler_step(i, m.x, m.model_output), m.result) / timeline.size(i) for i, m in enumerate(moments)
    )
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        error = _on_scheduler(denoiser, scheduler, moments, timeline, fold, tolerance)
        if first_order < tolerance:
            ours = euler(denoiser, moments[0].x, denoiser.times)
            off = _apart(ours, moments[-1].result) / timeline.size(len(moments) - 1)
            error = max(error, _checked(off, "our euler sampler", len(moments), tolerance))
    return error


def stochastic(scheduler: Any, moment: Moment) -> bool:
    """Whether the scheduler's step draws noise: two runs of it with other seeds differ."""
    with torch.random.fork_rng(devices=[]):
        results = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            results.append(step(copy.deepcopy(scheduler), moment.step_args, seed))
    return not torch.equal(*results)


def step(scheduler: Any, args: Any, seed: int = 0, **other: Any) -> Tensor:
    """The sample after `scheduler.step`, with generators of our own in the place of the caller's."""

    def fresh(_: Any, leaf: Any) -> Any:
        return torch.Generator(leaf.device).manual_seed(seed) if isinstance(leaf, torch.Generator) else leaf

    result = scheduler.step(**{**rebuild(args, fresh), **other})
    sample: Tensor = result[0] if isinstance(result, tuple) else result.prev_sample
    return sample


def _on_scheduler(
    denoiser: TracedDenoiser, scheduler: Any, moments: Sequence[Moment], timeline: Timeline, fold: int, tolerance: float
) -> float:
    scheduler, x, error = copy.deepcopy(scheduler), moments[0].x, 0.0
    for i, moment in enumerate(moments):
        ours = denoiser(x, timeline.starts[i]) * timeline.sign
        result = step(
            scheduler,
            moment.step_args,
            model_output=torch.cat([ours.to(moment.model_output.dtype)] * fold),
            sample=torch.cat([x.to(moment.x.dtype)] * fold),
        )
        x = result[: len(result) // fold].to(moment.x.dtype)
        off = _apart(x, moment.result) / timeline.size(i)
        error = max(error, _checked(off, "the pipeline's own scheduler", i + 1, tolerance))
    return error


def _checked(off: float, by: str, steps: int, tolerance: float) -> float:
    if not off < tolerance:  # also for nan
        raise TraceError(
            f"The replay with {by} differs from the pipeline after {steps} steps: its latents are off by {off:.2g}, "
            f"where {tolerance:g} is allowed."
        )
    return off


def _apart(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).abs().max())
