"""Reflow (arXiv 2209.03003, section 2): straighten the flow, by training on the pairs that its own paths connect.

A path leads from noise to x0. On the straight line between the two ends, x_t = (1 − t)·x0 + t·noise at any time t, the
student predicts v = noise − x0 (equation 1 over the teacher's pairs instead of independent ones). Lines of such pairs
cross less, so the student's paths bend less and need fewer steps, while samples stay those of the teacher. It
needs no data and one network. One step of `KD` is the same at t = 1 only. The student is sampled by "euler".

A schedule that is no flow has the same pairs: noise is what makes the path's first state of its x0.
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
from fewstep.distill.losses import Distance
from fewstep.distill.methods.scores import Levels

SAMPLER = "euler"


@dataclass(frozen=True, eq=False)
class Reflow:
    """Each pair of a batch is trained at one time, drawn by `levels`: evenly, as in the paper, or as they say."""

    student: Swappable
    levels: Levels = field(default_factory=lambda: Levels(low=0.001, high=1.0))
    distance: Distance = field(default_factory=Distance)

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        return {"student": self.student.module}

    @property
    def frozen(self) -> Mapping[str, nn.Module]:
        return {}

    def updates(self, batch: PathBatch, generator: torch.Generator) -> Iterator[Update]:
        schedule, x0 = self.student.schedule, batch.states[:, -1]
        t = self.levels.draw(schedule, len(x0), generator)
        x_t = schedule.add_noise(x0, noise_of(schedule, batch), t)
        prediction = self.student(x_t, t, batch.cond)
        yield Update("student", self.student.module, self.distance(schedule, prediction, x_t, t, x0))


def noise_of(schedule: Schedule, batch: PathBatch) -> Tensor:
    """The noise of which each path's first state is made with its x0: (x_T − alpha_T·x0) / sigma_T, shape of x0."""
    start = batch.times[0]
    noise = (batch.states[:, 0] - float(schedule.alpha(start)) * batch.states[:, -1]) / float(schedule.sigma(start))
    return noise.to(batch.states)
