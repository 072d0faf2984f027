"""Continuous-time consistency models (sCM, arXiv 2410.11081): consistency with r → t, so without a step size.

In TrigFlow x = cos(a)·x0 + sin(a)·z with z ~ N(0, sigma_data²): the angle a is a path's time, and a network gives the
velocity V = dx/da, called sigma_data·F in the paper. The student's x0 is f = cos(a)·x − sin(a)·V, and training moves f
against df/da along the path, until that is 0. Every schedule is TrigFlow but for a factor: x = x_t/n, with
n² = alpha² + (sigma/sigma_data)² and tan(a) = sigma/(alpha·sigma_data); for a flow see arXiv 2503.09641, section 3.1.

With a teacher its velocity carries x along the path; without, cos(a)·z − sin(a)·x0 does, which is right on average.
The paper's learned weight of the times is left out: with normalised tangents the loss is about 1/D at all of them.
The student is sampled by "renoise" (one step of it is Euler's).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fewstep.diffusion.schedule import Schedule
from fewstep.distill.data.samples import PathBatch
from fewstep.distill.data.seeds import generator as seeded
from fewstep.distill.engine.loop import Update
from fewstep.distill.engine.roles import Swappable
from fewstep.distill.jvp import Derivative, Function, checked, jvp
from fewstep.distill.losses import squared
from fewstep.distill.methods.consistency import LEVELS, alongside
from fewstep.distill.methods.scores import Levels
from fewstep.errors import InputError, bad_value

SAMPLER = "renoise"


@dataclass(frozen=True)
class Trig:
    """TrigFlow beside another schedule: x (batch, …) and angles (batch,) in float64."""

    schedule: Schedule
    sigma_data: float = 1.0

    def angle(self, t: Tensor) -> Tensor:
        """From 0, clean data, to π/2."""
        return torch.atan2(self.schedule.sigma(t), self.schedule.alpha(t) * self.sigma_data)

    def add_noise(self, x0: Tensor, noise: Tensor, angle: Tensor) -> Tensor:
        """x, from noise ~ N(0, 1)."""
        return self._mixed(x0, self.sigma_data * noise, angle)

    def velocity(self, x0: Tensor, noise: Tensor, angle: Tensor) -> Tensor:
        """dx/da while x0 and noise stay as they are."""
        return self._mixed(self.sigma_data * noise, -x0, angle)

    def predicted(self, denoiser: Swappable, x: Tensor, angle: Tensor, cond: object) -> Tensor:
        """The velocity V(x, a) of a denoiser of the other schedule, float32."""
        t = self.schedule.time_of(self.sigma_data * angle.tan())
        n = (self.schedule.alpha(t) ** 2 + (self.schedule.sigma(t) / self.sigma_data) ** 2).sqrt()
        x_t = alongside(n, x) * x
        prediction = denoiser(x_t, t, cond).to(x.dtype)
        return self.velocity(self.schedule.to_x0(prediction, x_t, t), self.schedule.to_noise(prediction, x_t, t), angle)

    @staticmethod
    def _mixed(a: Tensor, b: Tensor, angle: Tensor) -> Tensor:
        """cos·a + sin·b."""
        return alongside(angle.cos(), a) * a + alongside(angle.sin(), b) * b


def tangent(x: Tensor, angle: Tensor, dx: Tensor, v: Tensor, dv: Tensor, ramp: float = 1.0) -> Tensor:
    """cos(a)·df/da, which the student's velocity has to follow (arXiv 2410.11081, algorithm 1): shape of x.

    Args:
        dx: dx/da on the path.
        v: the student's velocity.
        dv: cos(a)·sin(a)·dv/da, its derivative as x and a move along the path.
        ramp: from 0, where only v is drawn to dx, to 1.
    """
    cos, sin = (alongside(value, x) for value in (angle.cos(), angle.sin()))
    return -(cos**2) * (v - dx) - ramp * (cos * sin * x + dv)


def normalised(g: Tensor, c: float) -> Tensor:
    """g / (‖g‖ + c) of each sample (section 4.2)."""
    return g / (alongside(g.flatten(1).norm(dim=1), g) + c)


@dataclass(frozen=True, eq=False)
class SCM:
    """sCD with a `teacher`, whose guidance ends up inside the student; sCT on the batches' x0 without.

    Attributes:
        levels: of the times.
        sigma_data: the deviation of the data: 0.5 for pictures in [−1, 1], 1 for most latents.
        warmup: the part of the run over which the student's own derivative comes in; `ramp` is how far it has.
        c: of the tangent's normalisation.
        derivative: how to take that derivative; see `checked`.

    Raises:
        InputError: a value out of its range.
    """

    student: Swappable
    teacher: Swappable | None = None
    levels: Levels = LEVELS
    sigma_data: float = 1.0
    warmup: float = 0.1
    c: float = 0.1
    derivative: Derivative = jvp
    ramp: float = 1.0

    def __post_init__(self) -> None:
        rules = {
            "sigma_data": (self.sigma_data > 0, "above 0"),
            "warmup": (0 <= self.warmup <= 1, "in [0, 1]"),
            "c": (self.c > 0, "above 0"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise InputError(bad_value(name, "sCM", rule, getattr(self, name)))

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        return {"student": self.student.module}

    @property
    def frozen(self) -> Mapping[str, nn.Module]:
        return {} if self.teacher is None else {"teacher": self.teacher.module}

    def at(self, step: int, steps: int) -> SCM:
        return replace(self, ramp=min(1.0, step / (self.warmup * steps)) if self.warmup else 1.0)

    def checked(self, batch: PathBatch) -> SCM:
        """With a derivative that works on this student: forward mode, or a finite difference and a RuntimeWarning.

        To be asked for once, before training, so that a resumed run takes the same.
        """
        x, angle, dx = self._on_path(batch, seeded("sCM", "check"))
        return replace(self, derivative=checked(*self._slope(x, angle, dx, batch.cond)))

    def updates(self, batch: PathBatch, generator: torch.Generator) -> Iterator[Update]:
        x, angle, dx = self._on_path(batch, generator)
        _, dv = self.derivative(*self._slope(x, angle, dx, batch.cond))
        v = self._trig.predicted(self.student, x, angle, batch.cond)
        g = normalised(tangent(x, angle, dx, v.detach(), dv, self.ramp), self.c)
        loss = squared((v - v.detach()) / self.sigma_data - g).mean()
        yield Update("student", self.student.module, loss)

    def _on_path(self, batch: PathBatch, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Points x on paths, their angles, and dx/da."""
        x0, trig = batch.states[:, -1], self._trig
        angle = trig.angle(self.levels.draw(self.student.schedule, len(x0), generator))
        noise = torch.randn(x0.shape, generator=generator).to(x0)
        x = trig.add_noise(x0, noise, angle)
        if self.teacher is None:
            return x, angle, trig.velocity(x0, noise, angle)
        with torch.no_grad():
            return x, angle, trig.predicted(self.teacher, x, angle, batch.cond)

    def _slope(
        self, x: Tensor, angle: Tensor, dx: Tensor, cond: object
    ) -> tuple[Function, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """What to take the derivative of, where, and along what.

        With cos·sin in the tangents, not after them, nothing is large near pure noise (the paper's JVP rearrangement),
        and a finite difference stays between the ends of the path.
        """
        pace = angle.cos() * angle.sin()
        f = lambda x, angle: self._trig.predicted(self.student, x, angle, cond)  # noqa: E731
        return f, (x, angle), (alongside(pace, x) * dx, pace)

    @property
    def _trig(self) -> Trig:
        return Trig(self.student.schedule, self.sigma_data)
