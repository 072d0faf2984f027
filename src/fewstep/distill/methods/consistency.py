"""Consistency distillation (arXiv 2303.01469) and consistency training (ECT, arXiv 2406.14548).

All points on one path of the probability flow lead to one x0, so a student's guess of x0 should be the same at x_t and
at an earlier x_r of the path: the loss is d(f(x_t, t), sg f(x_r, r)) / (t − r), and f is right by construction at the
path's end. With a teacher, x_r is one of its steps from x_t. Without, x_r has the x0 and noise of x_t; that is right on
average as r nears t (2303.01469, theorem 2), which is why t − r starts large, where this is denoising, and shrinks.

There is no average of the student as target, only a stopped gradient, and both calls share their dropout mask.

The times t and r are flow times here, u = sigma/(alpha + sigma) in [0, 1]: for a flow they are its own, and every other
schedule's path is a flow's in x_t/(alpha + sigma). The student is sampled by "renoise" (one step of it is Euler's).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from fewstep.diffusion.schedule import Schedule
from fewstep.distill.data.samples import PathBatch
from fewstep.distill.engine.loop import Update
from fewstep.distill.engine.roles import Swappable
from fewstep.distill.jvp import same_dropout
from fewstep.distill.losses import pseudo_huber, squared
from fewstep.distill.methods.backward import guess
from fewstep.distill.methods.progressive import euler_step
from fewstep.distill.methods.scores import Levels
from fewstep.errors import InputError, bad_value

SAMPLER = "renoise"
LEVELS = Levels(low=0.0, high=1.0, std=1.6)  # log-normal in sigma/alpha, as in ECT and sCM

Earlier = Callable[[Tensor, int], Tensor]  # (t, stage) -> r < t, both flow times
Judge = Callable[[Tensor, Tensor], Tensor]  # (x_r, r) -> x0


@dataclass(frozen=True)
class Shrinking:
    """ECT's r = t·(1 − (1 + k·sigmoid(−t))/q^(stage + 1)), not below 0 (arXiv 2406.14548, section 3).

    A small q takes several stages to bring r near t, from r = 0 in the first; with a large one the first is near.

    Raises:
        InputError: q ≤ 1 or k < 0.
    """

    q: float = 2.0
    k: float = 8.0

    def __post_init__(self) -> None:
        if not self.q > 1:
            raise InputError(bad_value("q", "the shrinking of t − r", "above 1", self.q))
        if not self.k >= 0:
            raise InputError(bad_value("k", "the shrinking of t − r", "0 or above", self.k))

    def __call__(self, t: Tensor, stage: int) -> Tensor:
        return t * (1 - (1 + self.k * (-t).sigmoid()) / self.q ** (stage + 1)).clamp(min=0)


@dataclass(frozen=True, eq=False)
class Consistency:
    """Distillation with a `teacher`, whose guidance ends up inside the student; training on the batches' x0 without.

    Attributes:
        earlier: r of (t, stage).
        stages: how many equal parts the run has; `stage` counts them from 0.
        levels: of the times t.
        huber: the c of `pseudo_huber`, or 0 for the mean square.

    Raises:
        InputError: no stages, or a negative `huber`.
    """

    student: Swappable
    teacher: Swappable | None = None
    earlier: Earlier = field(default_factory=Shrinking)
    stages: int = 8
    levels: Levels = LEVELS
    huber: float = 0.00054
    stage: int = 0

    def __post_init__(self) -> None:
        if self.stages < 1:
            raise InputError(bad_value("stages", "a consistency model", "at least 1", self.stages))
        if not self.huber >= 0:
            raise InputError(bad_value("huber", "a consistency model", "0 or above", self.huber))

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        return {"student": self.student.module}

    @property
    def frozen(self) -> Mapping[str, nn.Module]:
        return {} if self.teacher is None else {"teacher": self.teacher.module}

    def at(self, step: int, steps: int) -> Consistency:
        return replace(self, stage=min(step * self.stages // steps, self.stages - 1))

    def updates(self, batch: PathBatch, generator: torch.Generator) -> Iterator[Update]:
        t = self.levels.draw(self.student.schedule, len(batch.states), generator)
        yield Update("student", self.student.module, self.losses(batch, t, generator).mean())

    def losses(self, batch: PathBatch, t: Tensor, generator: torch.Generator, judge: Judge | None = None) -> Tensor:
        """The loss of each sample, (batch,), at the schedule's times t; `judge` gives the x0 wanted, or the student."""
        x0, schedule = batch.states[:, -1], self.student.schedule
        u_t = flow_time(schedule, t)
        u_r = self.earlier(u_t, self.stage)
        r = schedule.time_of(u_r / (1 - u_r))
        noise = torch.randn(x0.shape, generator=generator).to(x0)
        x_t = schedule.add_noise(x0, noise, t)
        with torch.no_grad(), same_dropout(x0.device):
            x_r = schedule.add_noise(x0, noise, r)
            if self.teacher is not None:
                x_r = euler_step(self.teacher, x_t, t, r, batch.cond)
            wanted = guess(self.student, x_r, r, batch.cond) if judge is None else judge(x_r, r)
            wanted = torch.where(alongside(u_r > 0, x_r), wanted, x_r)  # the path ends at x0 itself
        off = guess(self.student, x_t, t, batch.cond) - wanted
        distance = pseudo_huber(off, self.huber) if self.huber else squared(off)
        return distance / (u_t - u_r).to(distance)


def flow_time(schedule: Schedule, t: Tensor) -> Tensor:
    """sigma/(alpha + sigma) at the schedule's times: float64, shape of t. `schedule.time_of(u / (1 - u))` goes back."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return sigma / (alpha + sigma)


def alongside(value: Tensor, x: Tensor) -> Tensor:
    """A value for each sample, (batch,), to go with x (batch, …): of its dimensions, device and (but bool) dtype."""
    dtype = value.dtype if value.dtype == torch.bool else x.dtype
    return value.to(x.device, dtype).view(-1, *[1] * (x.dim() - 1))
