"""Backward simulation (arXiv 2405.14867, section 4.5): a student's samples as it will make them, with a gradient.

A student of several steps meets, at each but the first, a state that its own steps before left, not noised data. So in
training those steps are run, by the sampler that it will be used with. Where that noises anew (`renoise`), what a step
guesses is a sample, and one step is trained at a time. Along the flow (`euler`) a guess on the way only leads to the
end, and the end alone is a sample: judged as samples themselves, guesses are drawn to the middle of what they are of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from fewstep.diffusion.samplers import euler, renoise
from fewstep.diffusion.schedule import Denoiser, Schedule, Time
from fewstep.distill.data.paths import start_from
from fewstep.distill.data.samples import PathBatch
from fewstep.distill.engine.roles import Swappable
from fewstep.errors import InputError, bad_value

Stepping = Literal["renoise", "euler"]


@torch.no_grad()
def simulate(
    student: Denoiser,
    noise: Tensor,
    times: Sequence[float],
    exit_step: int,
    cond: Any,
    generator: torch.Generator,
) -> Tensor:
    """The state at times[exit_step] that a student who noises anew comes to from pure noise: shape of `noise`
    (batch, …).

    `noise` ~ N(0, 1); at times[0] it is scaled to the noise level there. Other noise is drawn from `generator`.
    """
    x = start_from(student.schedule, noise, times[0])
    if exit_step == 0:
        return x
    return renoise(student, x, times[: exit_step + 1], cond, generator=generator)


def guess(denoiser: Denoiser, x_t: Tensor, t: Time, cond: Any) -> Tensor:
    """The x0 that a denoiser sees in x_t (batch, …): float32, shape of x_t."""
    return denoiser.schedule.to_x0(denoiser(x_t, t, cond).float(), x_t.float(), t)


def noised(schedule: Schedule, x0: Tensor, t: Time, generator: torch.Generator) -> Tensor:
    """x_t with fresh noise: shape of x0."""
    return schedule.add_noise(x0, torch.randn(x0.shape, generator=generator).to(x0.device), t)


class Sampling(Protocol):
    """How a student's samples are made in training."""

    def sample(self, student: Swappable, batch: PathBatch, generator: torch.Generator) -> Tensor:
        """x0 for the batch's conditions, (batch, …), with a gradient."""
        ...


@dataclass(frozen=True)
class Rollout:
    """How a student is sampled in use, and from that its samples in training.

    Attributes:
        times: the student's, falling, from noise to the schedule's end; n + 1 of them for n steps.
        sampler: "renoise" (guess x0, noise it anew): each batch is trained at a step, drawn evenly, of the student's
            own sampling. "euler" (deterministic along the flow): all steps run with a gradient, and their activations
            are in memory at once.
        simulated: otherwise each sample is trained at a step of its own, on x0 of the batch, noised: no steps have to
            run before, but all states except the first are others than the student will meet.

    Raises:
        InputError: times that do not fall, or another sampler.
    """

    times: Sequence[float]
    sampler: Stepping = "renoise"
    simulated: bool = True

    def __post_init__(self) -> None:
        if len(self.times) < 2 or any(s >= t for t, s in pairwise(self.times)):
            raise InputError(bad_value("times", "a student", "at least two falling numbers", self.times))
        if self.sampler not in get_args(Stepping):
            raise InputError(bad_value("sampler", "a student", f"one of {get_args(Stepping)}", self.sampler))

    def sample(self, student: Swappable, batch: PathBatch, generator: torch.Generator) -> Tensor:
        """The student's x0, (batch, …): of all its steps along the flow, else of the one at `state`.

        Simulated, nothing is used of the batch but its shape and conditions.
        """
        if self.simulated and self.sampler == "euler":
            x = start_from(student.schedule, _noise(batch, generator), self.times[0])
            return euler(student, x, self.times, batch.cond).float()
        x_t, t = self.state(student, batch, generator)
        return guess(student, x_t, t, batch.cond)

    def state(self, student: Swappable, batch: PathBatch, generator: torch.Generator) -> tuple[Tensor, Time]:
        """x_t (batch, …) at a step of the student, and its time: one for the batch, or (batch,). No gradient."""
        steps = len(self.times) - 1
        if self.simulated:
            step = int(torch.randint(steps, (), generator=generator))
            x_t = simulate(student, _noise(batch, generator), self.times, step, batch.cond, generator)
            return x_t, float(self.times[step])
        x0 = batch.states[:, -1]
        t = torch.tensor(self.times, dtype=torch.float64)[torch.randint(steps, (len(x0),), generator=generator)]
        return noised(student.schedule, x0, t, generator), t


def _noise(batch: PathBatch, generator: torch.Generator) -> Tensor:
    x0 = batch.states[:, -1]
    return torch.randn(x0.shape, generator=generator).to(x0.device)
