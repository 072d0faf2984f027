"""Truncated consistency models (arXiv 2410.14895): a second stage that learns the noisy times [t', 1] only.

Most of a consistency model's capacity goes to denoising at small times, which one-step generation does not use. So a
copy of it is trained on, at t ≥ t' alone; below, the first stage stays in charge, frozen, and tells the copy where its
paths must lead. Without that boundary any constant would be consistent: so a share of each batch sits at t' itself.

The student is sampled by "renoise", with no step at a time below t': with t' at 0.5, the paper's sigma = alpha, in one
or two steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fewstep.distill.data.samples import PathBatch
from fewstep.distill.engine.loop import Update
from fewstep.distill.engine.roles import Swappable
from fewstep.distill.methods.backward import guess
from fewstep.distill.methods.consistency import Consistency, alongside, flow_time
from fewstep.errors import InputError, bad_value

SAMPLER = "renoise"


@dataclass(frozen=True, eq=False)
class TCM:
    """The second stage of a consistency model.

    Attributes:
        second: the student in training, which starts from the first's weights, with its teacher if it has one, and its
            times: `levels` from their low are squeezed into [t', 1], and r is best near t from the start.
        first: the first stage's student.
        boundary: t', a flow time: sigma/(alpha + sigma).
        share: of each batch, placed at t'.
        weight: of the mean loss of these samples, beside that of the others.

    Raises:
        InputError: a value out of its range.
    """

    second: Consistency
    first: Swappable
    boundary: float = 0.5
    share: float = 0.25
    weight: float = 0.1

    def __post_init__(self) -> None:
        rules = {
            "boundary": (0 < self.boundary < self.second.levels.high, "above 0 and below the highest level"),
            "share": (0 < self.share < 1, "between 0 and 1"),
            "weight": (self.weight > 0, "above 0"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise InputError(bad_value(name, "a truncated consistency model", rule, getattr(self, name)))

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        return self.second.modules

    @property
    def frozen(self) -> Mapping[str, nn.Module]:
        return {**self.second.frozen, "first": self.first.module}

    def at(self, step: int, steps: int) -> TCM:
        return replace(self, second=self.second.at(step, steps))

    def updates(self, batch: PathBatch, generator: torch.Generator) -> Iterator[Update]:
        student, samples = self.second.student, len(batch.states)
        if samples < 2:
            raise InputError(bad_value("batch", "a truncated consistency model", "at least 2", samples))
        edge = min(max(1, round(self.share * samples)), samples - 1)
        t = replace(self.second.levels, low=self.boundary).draw(student.schedule, samples, generator)
        t[:edge] = student.schedule.time_of(self.boundary / (1 - self.boundary))

        def judge(x_r: Tensor, r: Tensor) -> Tensor:
            """The first stage below t', the student above (section 3's truncated parametrisation)."""
            ours = flow_time(student.schedule, r) >= self.boundary
            below = guess(self.first, x_r, r, batch.cond)
            above = guess(student, x_r, r, batch.cond) if bool(ours.any()) else below
            return torch.where(alongside(ours, x_r), above, below)

        losses = self.second.losses(batch, t, generator, judge)
        yield Update("student", student.module, losses[edge:].mean() + self.weight * losses[:edge].mean())
