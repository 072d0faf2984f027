"""Eulerian distillation of a flow map (Align Your Flow, arXiv 2506.14603), in the form that takes no derivatives.

A flow map f(x_t, t, s) = x_t − (t − s)·u(x_t, s, t) carries a state along the teacher's path to any s ≤ t. Wherever on
the path one starts, it ends at the same point. The AYF-EMD loss (section 3 there) asks that of two starting times:

    ‖f(x_t, t, s) − sg f(x_t', t', s)‖²,    t' = t + ε·(s − t),  x_t' a step of the teacher from x_t

Divided by (t − s)² it says what u should be: the teacher's velocity v on the first part of the way, and on the rest
what the student says itself,

    u(x_t, s, t) → ε·v + (1 − ε)·sg u(x_t', s, t')

a mean of two velocities, so it can't explode. With ε → 0 its gradient is AYF's, and that of MeanFlow with a teacher,
which take du/dt by JVP: noisy in half precision, and not to be had with every attention kernel. Here ε stays finite,
at the price of the teacher's error over such a step: second order (Heun), so that of u is of order ε³.

The paper's other loss, Lagrangian (ds instead of dt), did well on its toys and badly on its pictures.

The student is a network of two times (`two_times.TwoTimes`), sampled by "euler" along any times: `two_times.along`, or
`two_times.fold` for plain diffusers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fewstep.distill.data.samples import PathBatch
from fewstep.distill.engine.loop import Update
from fewstep.distill.engine.roles import Swappable
from fewstep.distill.jvp import same_dropout
from fewstep.distill.losses import pseudo_huber, squared
from fewstep.distill.methods.meanflow import Pairs, Point, point
from fewstep.distill.two_times import average_velocity, two_times
from fewstep.errors import InputError, bad_value

SAMPLER = "euler"


@dataclass(frozen=True, eq=False)
class FlowMap:
    """One checkpoint for any number of steps; the teacher's guidance ends up inside the student.

    Attributes:
        student: over `TwoTimes`, of a flow that predicts its velocity.
        pairs: of the times s ≤ t.
        part: ε, the part of the way that the teacher goes.
        huber: the c of `pseudo_huber`, or 0 for the mean square.

    Raises:
        InputError: a student of one time or of another schedule, or a value out of its range.
    """

    student: Swappable
    teacher: Swappable
    pairs: Pairs = field(default_factory=Pairs)
    part: float = 0.25
    huber: float = 0.0

    def __post_init__(self) -> None:
        two_times(self.student)
        if not 0 < self.part <= 1:
            raise InputError(bad_value("part", "a flow map", "in (0, 1]", self.part))
        if not self.huber >= 0:
            raise InputError(bad_value("huber", "a flow map", "0 or above", self.huber))

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        return {"student": self.student.module}

    @property
    def frozen(self) -> Mapping[str, nn.Module]:
        return {"teacher": self.teacher.module}

    def updates(self, batch: PathBatch, generator: torch.Generator) -> Iterator[Update]:
        at = point(self.student, self.teacher, batch, self.pairs, generator)
        wanted = self.wanted(at)
        off = average_velocity(self.student, at.x_t, at.t, at.r, at.cond).float() - wanted
        loss = pseudo_huber(off, self.huber) if self.huber else squared(off)
        yield Update("student", self.student.module, loss.mean())

    @torch.no_grad()
    def wanted(self, at: Point) -> Tensor:
        """ε·v + (1 − ε)·u(x_t', s, t'), shape of x_t; v is the mean of the teacher's at both ends of its step.

        The student's call shares its dropout mask with the next one.
        """
        middle = at.t + self.part * (at.r - at.t)
        step = self.part * at.length
        ahead = self.teacher(at.x_t - step * at.velocity, middle, at.cond).to(at.x_t.dtype)
        velocity = (at.velocity + ahead) / 2  # Heun's
        with same_dropout(at.x_t.device):
            rest = average_velocity(self.student, at.x_t - step * velocity, middle, at.r, at.cond)
        return self.part * velocity + (1 - self.part) * rest.to(velocity.dtype)
