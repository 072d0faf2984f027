"""Finding a pipeline's denoiser: run it with a recorder, explain every number of the recording, replay it, or refuse.

No family has code of its own here. What is learned: which argument is x_t and how it is made of the scheduler's sample
(`inputs`), which arguments tell the time (`clock`), where the prediction is (`outputs`), how the branches are combined
(`guide`), which schedule the steps are on (`timeline`). Every other argument must stay the same over the steps: these
are the conditions (`cond`). `replay` then holds the whole against the pipeline's own latents.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import TraceError
from fewstep.models.model import Model
from fewstep.models.renoising import along_the_flow
from fewstep.models.tracing.denoiser import TracedDenoiser
from fewstep.models.tracing.explain import explain, read_condition
from fewstep.models.tracing.inputs import HALF
from fewstep.models.tracing.leaves import walk
from fewstep.models.tracing.moments import Moment, moments_of
from fewstep.models.tracing.record import record
from fewstep.models.tracing.replay import replay, stochastic
from fewstep.models.tracing.stages import Stage
from fewstep.models.tracing.timeline import find_timeline, sigma_table
from fewstep.models.tracing.understudy import Understudy

__all__ = ["TracedDenoiser", "trace"]

STEPS = 4  # of a trace whose call does not say
TOLERANCE, ON_GPU, COARSE = 1e-4, 1e-3, 5e-2  # of a replay; where kernels round otherwise by shape; in 8 or 11 bits


def trace(pipe: Any, *, replay_tolerance: float | None = None, **call: Any) -> TracedDenoiser:
    """The denoiser that `pipe(**call)` runs, checked by replay. The pipeline is left as it was.

    A scheduler that noises x0 anew at each step, as that of some few-step students does, is traced along its flow.

    Args:
        pipe: a diffusers pipeline with a `scheduler`.
        replay_tolerance: the largest difference in latents that passes. In sigma space, where latents are as large as
            sigma, differences are divided by √(1 + sigma²). None: 1e-4 on a CPU, 1e-3 on a GPU, and
            0.05 for a pipeline in half precision, which needs 0.01 or more, or with TF32 products.
        call: keyword arguments of the pipeline's own call. Without a number of steps it runs a few.

    Raises:
        TraceError: something in the run can't be explained, or the replay differs; the message names what.
    """
    pipeline, denoisers = type(pipe).__name__, Model(pipe).denoisers
    full = _completed(pipe, call)
    with along_the_flow(pipe):
        tape = record(pipe, denoisers, full)
    moments, fold = moments_of(tape.steps, pipeline)
    tolerance = _tolerance(moments, replay_tolerance)
    if stochastic(tape.scheduler, moments[0]):
        raise TraceError(
            f"{type(tape.scheduler).__name__} adds noise at each step, so no replay can check a trace: "
            "trace with a deterministic scheduler."
        )
    first = moments[0]
    timesteps = [step.timestep for step in tape.steps]
    timeline = find_timeline(tape.scheduler, timesteps, first.x, first.model_output, first.result, tolerance)
    stages, cond = explain(moments, timeline, sigma_table(tape.scheduler))

    understudy = Understudy(first.calls, stages[0].calls)

    def conditions(other: Mapping[str, Any]) -> Any:
        kept = {name: value for name, value in full.items() if name not in ("latents", "generator")}
        step = record(pipe, denoisers, {**kept, **other}, first_only=True, stand_in=understudy).steps[0]
        return read_condition(step, stages, cond.axes, fold, timeline.sign)

    denoiser = TracedDenoiser(
        schedule=timeline.schedule,
        modules={name: denoisers[name] for name in dict.fromkeys(c.name for stage in stages for c in stage.calls)},
        stages=stages,
        cond=cond,
        times=timeline.times,
        noise=first.x,
        call=dict(call),
        conditions=conditions,
        switch=_switch(pipe, stages),
    )
    return replace(denoiser, replay_error=replay(denoiser, tape.scheduler, moments, timeline, fold, tolerance))


def _completed(pipe: Any, call: Mapping[str, Any]) -> dict[str, Any]:
    """The call with few steps and no decoding, where it does not say otherwise."""
    takes = inspect.signature(type(pipe).__call__).parameters
    full = dict(call)
    if "num_inference_steps" in takes and not {"num_inference_steps", "timesteps", "sigmas"} & set(call):
        full["num_inference_steps"] = STEPS
    if "output_type" in takes:
        full.setdefault("output_type", "latent")
    return full


def _tolerance(moments: Sequence[Moment], wanted: float | None) -> float:
    """Half precision rounds more than a small one allows, and would look like something unexplained."""
    first = moments[0]
    found = [first.x, first.model_output, *(value for _, value in walk(first.calls[0].output))]
    half = next((value.dtype for value in found if isinstance(value, Tensor) and value.dtype in HALF), None)
    if wanted is None:
        if half is not None or (first.x.is_cuda and torch.get_float32_matmul_precision() != "highest"):
            return COARSE
        return ON_GPU if first.x.is_cuda else TOLERANCE
    if half is not None and wanted < 1e-2:
        raise TraceError(
            f"The pipeline runs in {str(half).removeprefix('torch.')}, whose rounding is above the replay "
            f"tolerance of {wanted:g}: trace it in float32, or with a replay_tolerance of 0.01 or more."
        )
    return wanted


def _switch(pipe: Any, stages: Sequence[Stage]) -> float | None:
    """The time at which a pipeline of two denoisers switches: a boundary in its config that lies between the stages."""
    if len(stages) != 2:
        return None
    values = [value for name, value in dict(pipe.config).items() if "boundary" in name and isinstance(value, float)]
    return next((value for value in values if stages[1].high < value <= stages[0].low), None)
