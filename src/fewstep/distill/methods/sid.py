"""Score identity distillation (SiD, arXiv 2404.04057): make the teacher's and the critic's scores agree, in squares.

Where DMD minimises a KL divergence, this minimises the Fisher divergence E‖f_real(x_t) − f_fake(x_t)‖² of the student's
samples x, noised, with f the x0 that a denoiser sees. The critic depends on the student in a way that no gradient can
follow, so the divergence is written in two forms, and the loss of the student is made of both (section 3):

    L1 = ‖f_real − f_fake‖²                    as it stands; its gradient alone misses too much
    L2 = ⟨f_real − f_fake, f_real − x⟩         equal in the mean, as E[x | x_t] = f_fake(x_t) for an exact critic
    L  = L2 − alpha·L1

Gradients run through x, and through both denoisers by x_t. No data is needed. The student is sampled as its `Rollout`
says; the paper's has one step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fewstep.distill.data.samples import PathBatch
from fewstep.distill.engine.loop import Update
from fewstep.distill.engine.roles import Swappable
from fewstep.distill.methods.backward import Sampling, guess, noised
from fewstep.distill.methods.scores import Critic, Levels, at_least_one, held, spread
from fewstep.errors import InputError, bad_value


def explicit(real: Tensor, fake: Tensor) -> Tensor:
    """L1, mean over the elements of each sample: (batch, …) -> (batch,)."""
    return (real - fake).square().flatten(1).mean(dim=1)


def projected(x: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    """L2, mean over the elements of each sample: (batch, …) -> (batch,)."""
    return ((real - fake) * (real - x)).flatten(1).mean(dim=1)


def fused(x: Tensor, real: Tensor, fake: Tensor, alpha: float) -> Tensor:
    """(L2 − alpha·L1) / mean|x − f_real|, mean over the batch: a scalar."""
    each = projected(x, real, fake) - alpha * explicit(real, fake)
    return (each / spread(x, real).flatten()).mean()


@dataclass(frozen=True, eq=False)
class SiD:
    """`alpha`: the part of L1; the paper finds 1 safe and 1.2 best. `critic_steps`: before each update of the student,
    one of which is an iteration; the paper's 1. The rest as in `dmd2.DMD2`.

    Raises:
        InputError: `critic_steps` below 1, or an `alpha` that is negative.
    """

    student: Swappable
    teacher: Swappable
    critic: Critic
    rollout: Sampling
    critic_steps: int = 1
    alpha: float = 1.0
    levels: Levels = field(default_factory=Levels)

    def __post_init__(self) -> None:
        at_least_one("critic_steps", "SiD", self.critic_steps)
        if not self.alpha >= 0:
            raise InputError(bad_value("alpha", "SiD", "0 or above", self.alpha))

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        return {"student": self.student.module, "critic": self.critic.module}

    @property
    def frozen(self) -> Mapping[str, nn.Module]:
        return {"teacher": self.teacher.module}

    def updates(self, batch: PathBatch, generator: torch.Generator) -> Iterator[Update]:
        for _ in range(self.critic_steps):
            with torch.no_grad():
                x = self.rollout.sample(self.student, batch, generator)
            yield Update("critic", self.critic.module, self.critic.loss(x, batch.cond, generator))
        yield Update("student", self.student.module, self.student_loss(batch, generator))

    def student_loss(self, batch: PathBatch, generator: torch.Generator) -> Tensor:
        x = self.rollout.sample(self.student, batch, generator)
        t = self.levels.draw(self.teacher.schedule, len(x), generator)
        x_t = noised(self.teacher.schedule, x, t, generator)
        with held(self.teacher.module, self.critic.module):
            real, fake = (guess(denoiser, x_t, t, batch.cond) for denoiser in (self.teacher, self.critic.denoiser))
        return fused(x, real, fake, self.alpha)
