"""MeanFlow (arXiv 2505.13447): the average velocity of a flow, with which one network takes any number of steps.

u(x_t, r, t) is the mean of the velocity v on the way from r to t ≥ r, so x_r = x_t − (t − r)·u. Derived by t that is an
equation without an integral (equation 6), and u is trained towards its right side, held still (equations 8 to 11):

    u = v − (t − r)·du/dt,    du/dt = v·∂u/∂x + ∂u/∂t = jvp(u, (x_t, r, t), (v, 0, 1))

v is the teacher's, whose guidance ends up inside the student, or noise − x0, whose mean is v. As du/dt has rare large
errors, the loss d of each sample is divided by (d + c)^p, held still too (section 4.3). With p = 1 that is nearly 1
until d is near c, and says little: judge by samples.

The student is a network of two times (`two_times.TwoTimes`), sampled by "euler" along any times: `two_times.along`, or
`two_times.fold` for plain diffusers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from fewstep.distill.data.samples import PathBatch
from fewstep.distill.data.seeds import generator as seeded
from fewstep.distill.engine.loop import Update
from fewstep.distill.engine.roles import Swappable
from fewstep.distill.jvp import Derivative, Function, checked, jvp
from fewstep.distill.losses import squared
from fewstep.distill.methods.scores import Levels
from fewstep.distill.two_times import average_velocity, two_times
from fewstep.errors import InputError, bad_value

SAMPLER = "euler"


@dataclass(frozen=True)
class Pairs:
    """A distribution of pairs r ≤ t: the smaller and the larger of two draws of `levels`, but for two shares of them.

    Attributes:
        equal: the share with r = t, which is flow matching.
        whole: the share with r at the data, the step that one-step sampling takes. Two draws alone are all but never
            both near the ends.

    Raises:
        InputError: a share is not in [0, 1], or they are more than 1 together.
    """

    levels: Levels = field(default_factory=lambda: Levels(low=0.0, high=1.0))
    equal: float = 0.25
    whole: float = 0.25

    def __post_init__(self) -> None:
        rules = {"equal": "in [0, 1]", "whole": f"in [0, 1], and at most 1 with the equal share of {self.equal}"}
        for name, rule in rules.items():
            share = getattr(self, name)
            if not 0 <= share <= 1 or (name == "whole" and self.equal + share > 1):
                raise InputError(bad_value(name, "the pairs of times", rule, share))

    def draw(self, student: Swappable, samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """r and t, each (samples,) float64."""
        one, other = (self.levels.draw(student.schedule, samples, generator) for _ in range(2))
        t, r = torch.maximum(one, other), torch.minimum(one, other)
        share = torch.rand(samples, generator=generator)
        r = torch.where(share < self.equal, t, r)
        return torch.where(share >= 1 - self.whole, torch.zeros_like(r), r), t


@dataclass(frozen=True, eq=False)
class Point:
    """A state on a path: x_t (batch, …), the velocity there, and the times r ≤ t of the step to take, (batch,)."""

    x_t: Tensor
    velocity: Tensor
    r: Tensor
    t: Tensor
    cond: object

    @property
    def length(self) -> Tensor:
        """t − r, shaped to multiply x_t."""
        return (self.t - self.r).to(self.x_t).view(-1, *[1] * (self.x_t.dim() - 1))


def point(
    student: Swappable, teacher: Swappable | None, batch: PathBatch, pairs: Pairs, generator: torch.Generator
) -> Point:
    """The batch's x0 with fresh noise at drawn times; the velocity is the teacher's, or noise − x0 without one."""
    x0 = batch.states[:, -1]
    r, t = pairs.draw(student, len(x0), generator)
    noise = torch.randn(x0.shape, generator=generator).to(x0)
    x_t = student.schedule.add_noise(x0, noise, t)
    if teacher is None:
        return Point(x_t, noise - x0, r, t, batch.cond)
    with torch.no_grad():
        return Point(x_t, teacher(x_t, t, batch.cond).to(x_t.dtype), r, t, batch.cond)


def slope(student: Swappable, at: Point) -> tuple[Function, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """du/dt along the path, as a function of (x, r, t) with its inputs and tangents."""

    def u(x: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return average_velocity(student, x, t, r, at.cond)

    return u, (at.x_t, at.r, at.t), (at.velocity, torch.zeros_like(at.r), torch.ones_like(at.t))


@dataclass(frozen=True, eq=False)
class MeanFlow:
    """Distillation with a `teacher`; training on the batches' x0 without.

    Attributes:
        student: over `TwoTimes`, of a flow that predicts its velocity.
        pairs: of the times r and t.
        p, c: of the weight (the paper: p = 0.75 on CIFAR-10 and 1 on ImageNet, c = 0.001).
        derivative: how du/dt is taken; see `checked`.

    Raises:
        InputError: a student of one time or of another schedule, or a value out of its range.
    """

    student: Swappable
    teacher: Swappable | None = None
    pairs: Pairs = field(default_factory=Pairs)
    p: float = 0.75
    c: float = 1e-3
    derivative: Derivative = jvp

    def __post_init__(self) -> None:
        two_times(self.student)
        for name, holds, rule in (("p", self.p >= 0, "0 or above"), ("c", self.c > 0, "above 0")):
            if not holds:
                raise InputError(bad_value(name, "MeanFlow", rule, getattr(self, name)))

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        return {"student": self.student.module}

    @property
    def frozen(self) -> Mapping[str, nn.Module]:
        return {} if self.teacher is None else {"teacher": self.teacher.module}

    def checked(self, batch: PathBatch) -> MeanFlow:
        """With a derivative that works on this student: forward mode, or a finite difference and a RuntimeWarning.

        To be asked for once, before training, so that a resumed run takes the same.
        """
        at = point(self.student, self.teacher, batch, replace(self.pairs, equal=0.0), seeded("MeanFlow", "check"))
        return replace(self, derivative=checked(*slope(self.student, at)))

    def updates(self, batch: PathBatch, generator: torch.Generator) -> Iterator[Update]:
        at = point(self.student, self.teacher, batch, self.pairs, generator)
        _, change = self.derivative(*slope(self.student, at))
        wanted = at.velocity - at.length * change
        u = average_velocity(self.student, at.x_t, at.t, at.r, at.cond)
        yield Update("student", self.student.module, adaptive(u.float() - wanted, self.p, self.c))


def adaptive(off: Tensor, p: float, c: float) -> Tensor:
    """The mean over samples of d / sg(d + c)^p, with d the mean square of each: (batch, …) -> a scalar."""
    d = squared(off)
    return (d / (d.detach() + c) ** p).mean()
