"""Distribution matching distillation (DMD2, arXiv 2405.14867): move the student's samples up the teacher's density.

The gradient of KL(student ‖ teacher) in a sample x is the difference of two scores at x noised, which is, but for a
factor, the difference of what two denoisers see in it: the critic, trained on the student's samples, and the teacher.
It needs no data and sharpens, and it seeks modes: watch diversity. With a `Gan`, real data also judges the samples.

The student is sampled as its `Rollout` says: "renoise" in the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.distill.data.samples import PathBatch
from fewstep.distill.engine.loop import Update
from fewstep.distill.engine.roles import Swappable
from fewstep.distill.methods.adversary import Gan
from fewstep.distill.methods.backward import Sampling, guess, noised
from fewstep.distill.methods.scores import EVERYWHERE, Critic, GuidedWithin, Levels, at_least_one, spread
from fewstep.errors import InputError

Weigh = Callable[[Tensor, Tensor], Tensor]  # logits (batch, n) of the student's samples, and their t -> (batch,)
StudentLoss = Callable[[PathBatch, torch.Generator], Tensor]


def kl_gradient(x: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    """The way that raises KL(student ‖ teacher) fastest in x, (batch, …): (fake − real) / mean|x − real| (section 3).

    `real` and `fake` are the x0 that teacher and critic see in x noised. As x0 = (x_t + sigma²·score) / alpha, their
    difference is that of the scores, times sigma²/alpha.
    """
    return ((fake - real) / spread(x, real)).detach()


def descend(x: Tensor, gradient: Tensor) -> Tensor:
    """½·mean(x − sg(x − gradient))², a scalar whose gradient in x (batch, …) is `gradient` / the number of elements."""
    return 0.5 * (x - (x - gradient).detach()).square().mean()


@dataclass(frozen=True, eq=False)
class DMD2:
    """Distribution matching, with or without a discriminator.

    Attributes:
        student, teacher: see `roles`; guidance is the teacher's own.
        critic: the denoiser of the student's samples.
        rollout: how the student is sampled; see `backward.Rollout`.
        critic_steps: updates of the critic (and of the discriminator) before each update of the student, and an
            iteration of the loop is one update of the student. The paper's 5: its code trains the critic in every
            iteration and the student in every fifth. Code that trains either one in an iteration has one less.
        levels: of the noise at which the scores, and the discriminator's samples, are compared.
        gan: a discriminator; None for none, and then no data is used.
        guided: the noise levels between which the teacher is guided; see `GuidedWithin`.

    Raises:
        InputError: `critic_steps` below 1, `guided` no range in [0, 1], or a `critic_weight` where the discriminator
            has not the critic's features.
    """

    student: Swappable
    teacher: Swappable
    critic: Critic
    rollout: Sampling
    critic_steps: int = 5
    levels: Levels = field(default_factory=Levels)
    gan: Gan | None = None
    guided: tuple[float, float] = EVERYWHERE

    def __post_init__(self) -> None:
        at_least_one("critic_steps", "DMD2", self.critic_steps)
        _ = self._teacher  # checks `guided`
        if self.gan and self.gan.critic_weight and self.gan.discriminator.backbone is not self.critic.module:
            raise InputError("A 'critic_weight' needs a discriminator on the features of the critic.")

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        trained = {"student": self.student.module, "critic": self.critic.module}
        return {**trained, "discriminator": self.gan.module} if self.gan else trained

    @property
    def frozen(self) -> Mapping[str, nn.Module]:
        return {"teacher": self.teacher.module}

    @property
    def _teacher(self) -> GuidedWithin:
        return GuidedWithin(self.teacher, self.guided)

    def checked(self, batch: PathBatch) -> DMD2:
        """The same, once `guided` is known to do something; see `GuidedWithin.check`."""
        self._teacher.check(batch.states[:, -1], batch.cond)
        return self

    def updates(
        self, batch: PathBatch, generator: torch.Generator, student_loss: StudentLoss | None = None
    ) -> Iterator[Update]:
        """An iteration; `student_loss` is that of a method which builds on this one."""
        for _ in range(self.critic_steps):
            yield from self.critic_updates(batch, generator)
        loss = (student_loss or self.student_loss)(batch, generator)
        yield Update("student", self.student.module, loss)

    def critic_updates(self, batch: PathBatch, generator: torch.Generator) -> Iterator[Update]:
        """One update of the critic, and of the discriminator, both on the same new samples of the student."""
        with torch.no_grad():
            x = self.rollout.sample(self.student, batch, generator)
        loss = self.critic.loss(x, batch.cond, generator)
        if self.gan is None:
            yield Update("critic", self.critic.module, loss)
            return
        t = self.levels.draw(self.teacher.schedule, len(x), generator)
        real_t, made_t = (noised(self.teacher.schedule, one, t, generator) for one in (batch.states[:, -1], x))
        compared = self.gan.compare(real_t, made_t, t, batch.cond)
        yield Update("critic", self.critic.module, loss + compared.critic_loss() if self.gan.critic_weight else loss)
        yield Update("discriminator", self.gan.module, compared.discriminator_loss())

    def student_loss(self, batch: PathBatch, generator: torch.Generator, weigh: Weigh | None = None) -> Tensor:
        """The student's loss, a scalar. `weigh` gives each sample's gradient a weight, from the discriminator."""
        x = self.rollout.sample(self.student, batch, generator)
        x_t, t, gradient = self.matched(x, batch.cond, generator)
        if self.gan is None:
            return descend(x, gradient)
        logits = self.gan.judge(x_t, t, batch.cond)
        if weigh is not None:
            gradient = gradient * weigh(logits.detach(), t).to(x).view(-1, *[1] * (x.dim() - 1))
        return descend(x, gradient) + self.gan.student_loss(logits)

    def matched(self, x: Tensor, cond: Any, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """The student's samples x (batch, …) noised, their times (batch,), and `kl_gradient` there."""
        t = self.levels.draw(self.teacher.schedule, len(x), generator)
        x_t = noised(self.teacher.schedule, x, t, generator)
        with torch.no_grad():
            real, fake = guess(self._teacher, x_t, t, cond), guess(self.critic.denoiser, x_t, t, cond)
        return x_t, t, kl_gradient(x, real, fake)


class OnDMD2:
    """What a method that is built on DMD2 has of it: the networks."""

    dmd2: DMD2

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        return self.dmd2.modules

    @property
    def frozen(self) -> Mapping[str, nn.Module]:
        return self.dmd2.frozen
