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
from fewstep.distill.data.seeds import generator as seeded
from fewstep.distill.engine.loop import Update
from fewstep.distill.engine.roles import Swappable
from fewstep.distill.methods.adversary import Gan
from fewstep.distill.methods.backward import Sampling, guess, noised
from fewstep.distill.methods.scores import Critic, Levels, at_least_one, flow_time, spread
from fewstep.errors import InputError, bad_value

Weigh = Callable[[Tensor, Tensor], Tensor]  # logits (batch, n) of the student's samples, and their t -> (batch,)
EVERYWHERE = (0.0, 1.0)


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
        guided: the noise levels u = sigma/(alpha + sigma) between which the teacher is guided (arXiv 2404.07724); at
            others it only knows the condition. What its guidance points at is no distribution, so the student is
            driven on for as long as it trains: where details are drawn, to ever stronger colours.

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
        low, high = self.guided
        if not 0 <= low < high <= 1:
            raise InputError(bad_value("guided", "DMD2", "two rising numbers in [0, 1]", self.guided))
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
    def _told(self) -> Swappable:
        """The teacher without guidance: it only knows the condition."""
        return self.teacher.with_module(self.teacher.module, guided=False)

    @torch.no_grad()
    def checked(self, batch: PathBatch) -> DMD2:
        """The same, once `guided` is known to do something; to be asked for once, before training.

        Raises:
            InputError: `guided` beside a teacher without guidance.
        """
        if self.guided != EVERYWHERE:
            generator, schedule = seeded("DMD2", "check"), self.teacher.schedule
            t = self.levels.draw(schedule, len(batch.states), generator)
            x_t = noised(schedule, batch.states[:, -1], t, generator)
            if torch.equal(self.teacher(x_t, t, batch.cond), self._told(x_t, t, batch.cond)):
                raise InputError(
                    "'guided' says at which noise levels the teacher is guided, and it is not guided at all."
                )
        return self

    def updates(self, batch: PathBatch, generator: torch.Generator) -> Iterator[Update]:
        for _ in range(self.critic_steps):
            yield from self.critic_updates(batch, generator)
        yield Update("student", self.student.module, self.student_loss(batch, generator))

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
        t = self.levels.draw(self.teacher.schedule, len(x), generator)
        x_t = noised(self.teacher.schedule, x, t, generator)
        with torch.no_grad():
            real, fake = self.real(x_t, t, batch.cond), guess(self.critic.denoiser, x_t, t, batch.cond)
        gradient = kl_gradient(x, real, fake)
        if self.gan is None:
            return descend(x, gradient)
        logits = self.gan.judge(x_t, t, batch.cond)
        if weigh is not None:
            gradient = gradient * weigh(logits.detach(), t).to(x).view(-1, *[1] * (x.dim() - 1))
        return descend(x, gradient) + self.gan.student_loss(logits)

    def real(self, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        """The x0 that the teacher sees in x_t (batch, …) at t (batch,), guided where `guided` says: shape of x_t."""
        guided = guess(self.teacher, x_t, t, cond)
        if self.guided == EVERYWHERE:
            return guided
        told = guess(self._told, x_t, t, cond)
        low, high = self.guided
        u = flow_time(self.teacher.schedule, t).to(x_t.device)
        return torch.where(((low <= u) & (u <= high)).view(-1, *[1] * (x_t.dim() - 1)), guided, told)
