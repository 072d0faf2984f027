"""What a job's guard measures: the student's samples in its own steps against the teacher's, from the same noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.diffusion.samplers import dpmpp_2m, euler, renoise
from fewstep.distill.data.paths import start_from
from fewstep.distill.data.seeds import generator
from fewstep.distill.engine.precision import uncompiled
from fewstep.distill.engine.roles import Swappable, device_of
from fewstep.distill.methods.backward import Stepping
from fewstep.distill.two_times import TwoTimes, along
from fewstep.distill.watching.guard import Probe, Reference
from fewstep.distill.watching.score import distance


def probe(
    teacher: Swappable,
    condition: Callable[[Sequence[Any]], Any],
    prompts: Sequence[Any],
    draws: int,
    shape: Sequence[int],
    times: Sequence[float],
    teacher_times: Sequence[float],
    sampler: Stepping,
    seed: int = 0,
) -> Probe:
    """`draws` samples (…, *shape) of each prompt. The score is `score.distance` from the teacher's.

    `times` are the student's, `teacher_times` those of the teacher's solver (DPM-Solver++ 2M).
    """
    repeated = [prompt for prompt in prompts for _ in range(draws)]
    device = device_of(teacher.module)
    draws_of_noise = [torch.randn(tuple(shape), generator=generator(seed, "probe", i)) for i in range(len(repeated))]
    with torch.no_grad(), uncompiled(teacher.module):
        cond = condition(repeated)
    start = start_from(teacher.schedule, torch.stack(draws_of_noise).to(device), times[0])

    def grouped(x0: Tensor) -> Tensor:
        return x0.view(len(prompts), draws, *x0.shape[1:])

    def sample(module: nn.Module) -> Tensor:
        student = teacher.with_module(module, guided=False)
        denoiser = along(student, times) if isinstance(module, TwoTimes) else student
        if sampler == "renoise":
            return grouped(renoise(denoiser, start, times, cond, generator=generator(seed, "probe renoise")))
        return grouped(euler(denoiser, start, times, cond))

    with torch.no_grad():
        wanted = grouped(dpmpp_2m(teacher, start, teacher_times, cond))
    return Probe(sample, Reference.of(wanted), lambda x0: distance(_channels_first(x0), _channels_first(wanted)))


def _channels_first(x0: Tensor) -> Tensor:
    """(conditions, draws, channels, …): tokens (…, tokens, channels) are turned, all else is so already."""
    return x0.transpose(-1, -2) if x0.dim() == 4 else x0
