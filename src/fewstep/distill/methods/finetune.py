"""Plain fine-tuning: the loss that the network was first trained with, on the batches' x0.

Noise is added at random times and the network predicts from x_t what its schedule says it predicts (noise, v, x0): the
mean square of what it is off by (arXiv 2006.11239, equation 14; for a flow arXiv 2209.03003, equation 1). On teacher
samples it puts the teacher's guidance inside, so that one call a step is enough; on data it adapts to them. It brings
no fewer steps by itself. The student is sampled by "euler".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fewstep.diffusion.schedule import Schedule
from fewstep.distill.data.samples import PathBatch
from fewstep.distill.engine.loop import Update
from fewstep.distill.engine.roles import Swappable
from fewstep.distill.losses import squared
from fewstep.distill.methods.scores import Levels

SAMPLER = "euler"


@dataclass(frozen=True, eq=False)
class Finetune:
    """`levels` are those of the times: with std=1 the logit-normal of arXiv 2403.03206, with None uniform ones."""

    student: Swappable
    levels: Levels = field(default_factory=lambda: Levels(low=0.0, high=1.0, std=1.0))

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        return {"student": self.student.module}

    @property
    def frozen(self) -> Mapping[str, nn.Module]:
        return {}

    def updates(self, batch: PathBatch, generator: torch.Generator) -> Iterator[Update]:
        schedule, x0 = self.student.schedule, batch.states[:, -1]
        t = self.levels.draw(schedule, len(x0), generator)
        noise = torch.randn(x0.shape, generator=generator).to(x0)
        x_t, wanted = noised_target(schedule, x0, noise, t)
        prediction = self.student(x_t, t, batch.cond)
        yield Update("student", self.student.module, squared(prediction.float() - wanted).mean())


def noised_target(schedule: Schedule, x0: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """x_t, and the prediction that means this x0 and noise: shapes of x0, float32; t of shape (batch,).

    In float64 on the way: at a time near the end noise is all but gone from x_t, and is read back from it.
    """
    clean = x0.double()
    x_t = schedule.add_noise(clean, noise.double(), t)
    return x_t.float(), schedule.from_x0(clean, x_t, t).float()
