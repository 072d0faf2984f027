"""Latent adversarial diffusion distillation (LADD, arXiv 2403.12015): a discriminator over the teacher's own features.

The student's samples and real ones are noised to the same level, the frozen teacher looks at both, and heads on the
features of its blocks learn to tell them apart. No score is matched and no critic is trained: two networks and heads.
The real ones are x0 of the batch, best samples of the guided teacher, as in the paper.

The student is sampled as its `Rollout` says: "renoise" in the paper, from noised data (`simulated=False`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fewstep.distill.data.samples import PathBatch
from fewstep.distill.engine.loop import Update
from fewstep.distill.engine.roles import Swappable
from fewstep.distill.methods.adversary import Gan
from fewstep.distill.methods.backward import Sampling, noised
from fewstep.distill.methods.scores import Levels, at_least_one


def paper_levels() -> Levels:
    """logit(u) ~ N(1, 1): rather noisy, which judges structure before texture."""
    return Levels(low=0.0, high=1.0, shift=math.e, std=1.0)


@dataclass(frozen=True, eq=False)
class LADD:
    """Adversarial distillation. `gan`: most often a `FeatureDiscriminator` over the teacher, of weight 1.

    `discriminator_steps`: before each update of the student, one of which is an iteration.

    Raises:
        InputError: `discriminator_steps` below 1.
    """

    student: Swappable
    gan: Gan
    rollout: Sampling
    discriminator_steps: int = 1
    levels: Levels = field(default_factory=paper_levels)

    def __post_init__(self) -> None:
        at_least_one("discriminator_steps", "LADD", self.discriminator_steps)

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        return {"student": self.student.module, "discriminator": self.gan.module}

    @property
    def frozen(self) -> Mapping[str, nn.Module]:
        backbone = self.gan.discriminator.backbone
        return {} if backbone is None else {"teacher": backbone}

    def updates(self, batch: PathBatch, generator: torch.Generator) -> Iterator[Update]:
        schedule, real, cond = self.student.schedule, batch.states[:, -1], batch.cond
        for _ in range(self.discriminator_steps):
            with torch.no_grad():
                made = self.rollout.sample(self.student, batch, generator)
            t = self.levels.draw(schedule, len(real), generator)
            real_t, made_t = (noised(schedule, x, t, generator) for x in (real, made))
            loss = self.gan.compare(real_t, made_t, t, cond).discriminator_loss()
            yield Update("discriminator", self.gan.module, loss)
        yield Update("student", self.student.module, self.student_loss(batch, generator))

    def student_loss(self, batch: PathBatch, generator: torch.Generator) -> Tensor:
        made = self.rollout.sample(self.student, batch, generator)
        t = self.levels.draw(self.student.schedule, len(made), generator)
        made_t = noised(self.student.schedule, made, t, generator)
        return self.gan.student_loss(self.gan.judge(made_t, t, batch.cond))
