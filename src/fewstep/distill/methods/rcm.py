"""rCM (score-regularised consistency, arXiv 2510.08431): sCM for diversity and any number of steps, DMD2 for sharpness.

The consistency of sCM covers all modes but blurs fine detail; distribution matching sharpens but seeks modes. Here both
train one student: 100·L_sCM + 1·L_DMD, and the critic in between. DMD2's samples are the student's own, after up to
three earlier steps at random falling times, so that no number of steps is preferred. While sCM warms up it is alone.

The student is sampled by "renoise", in one to four steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fewstep.distill.data.paths import start_from
from fewstep.distill.data.samples import PathBatch
from fewstep.distill.engine.loop import Update
from fewstep.distill.engine.roles import Swappable
from fewstep.distill.methods.backward import guess, noised
from fewstep.distill.methods.dmd2 import DMD2, OnDMD2
from fewstep.distill.methods.scm import SCM
from fewstep.distill.methods.scores import Levels, at_least_one
from fewstep.errors import InputError, bad_value

SAMPLER = "renoise"


@dataclass(frozen=True)
class RandomRollout:
    """The student's samples after some of its own steps at times that no list holds.

    Attributes:
        start: the time of pure noise.
        most: steps, of which the last alone has a gradient; how many run is drawn evenly.
        levels: of the steps after the first: each sample draws its own, and none is above the one before.

    Raises:
        InputError: `most` below 1.
    """

    start: float
    most: int = 4
    levels: Levels = field(default_factory=lambda: Levels(shift=5.0))

    def __post_init__(self) -> None:
        at_least_one("most", "a rollout", self.most)

    def state(self, student: Swappable, batch: PathBatch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """x_t (batch, …) and t (batch,) of the last step. No gradient, and nothing of the batch but shape and cond."""
        noise = torch.randn(batch.states[:, -1].shape, generator=generator).to(batch.states.device)
        x_t = start_from(student.schedule, noise, self.start)
        t = torch.full((len(x_t),), self.start, dtype=torch.float64)
        with torch.no_grad():
            for _ in range(int(torch.randint(self.most, (), generator=generator))):
                x0 = guess(student, x_t, t, batch.cond)
                t = torch.minimum(t, self.levels.draw(student.schedule, len(t), generator))
                x_t = noised(student.schedule, x0, t, generator)
        return x_t, t

    def sample(self, student: Swappable, batch: PathBatch, generator: torch.Generator) -> Tensor:
        """The student's x0 at that step, (batch, …): only this one call has a gradient."""
        x_t, t = self.state(student, batch, generator)
        return guess(student, x_t, t, batch.cond)


@dataclass(frozen=True, eq=False)
class RCM(OnDMD2):
    """Both losses on one student, as means over the elements; the paper's weights are of sums, and mean the same.

    Attributes:
        scm: with a teacher.
        dmd2: on the same student, best with a `RandomRollout` and the paper's four `critic_steps`.
        scm_weight, dmd_weight: of mean(tangent)² and mean(gradient)².

    Raises:
        InputError: a weight that is negative, no teacher, or two students.
    """

    scm: SCM
    dmd2: DMD2
    scm_weight: float = 100.0
    dmd_weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("scm_weight", "dmd_weight"):
            if not getattr(self, name) >= 0:
                raise InputError(bad_value(name, "rCM", "0 or above", getattr(self, name)))
        if self.scm.teacher is None or self.scm.student.module is not self.dmd2.student.module:
            raise InputError("rCM needs an sCM with a teacher, and the same student in both methods.")

    def at(self, step: int, steps: int) -> RCM:
        return replace(self, scm=self.scm.at(step, steps))

    def updates(self, batch: PathBatch, generator: torch.Generator) -> Iterator[Update]:
        warm = self.scm.ramp >= 1
        for _ in range(self.dmd2.critic_steps if warm else 0):
            yield from self.dmd2.critic_updates(batch, generator)
        (consistent,) = self.scm.updates(batch, generator)
        loss = self.scm_weight * consistent.loss
        if warm:
            matching = 2 * self.dmd2.student_loss(batch, generator)  # which has a half
            loss = loss + self.dmd_weight * matching
        yield Update("student", consistent.module, loss)
