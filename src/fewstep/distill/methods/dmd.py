"""Distribution matching with regression (DMD, arXiv 2311.18828): as `dmd2`, and held to the teacher's paths.

Distribution matching alone seeks the densest modes, and the longer it goes on the more its samples look alike. Here the
student is also asked, from a state of each path, for the path's own end (equation 9): it may not forget what the
teacher makes of other noise. Regression alone blurs, so a large weight does too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewstep.distill.data.samples import PathBatch
from fewstep.distill.engine.loop import Update
from fewstep.distill.losses import Distance
from fewstep.distill.methods.dmd2 import DMD2, OnDMD2
from fewstep.errors import InputError, bad_value


@dataclass(frozen=True, eq=False)
class DMD(OnDMD2):
    """Distribution matching on the student's own samples, plus regression on the teacher's.

    Attributes:
        dmd2: the distribution matching; see there.
        weight: of the regression; the paper's 0.25.
        distance: from the path's end.

    Raises:
        InputError: a `weight` that is not above 0.
    """

    dmd2: DMD2
    weight: float = 0.25
    distance: Distance = field(default_factory=Distance)

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise InputError(bad_value("weight", "DMD", "above 0 (dmd2 is the same without regression)", self.weight))

    def updates(self, batch: PathBatch, generator: torch.Generator) -> Iterator[Update]:
        return self.dmd2.updates(batch, generator, self.student_loss)

    def student_loss(self, batch: PathBatch, generator: torch.Generator) -> Tensor:
        """The student's loss, a scalar."""
        return self.dmd2.student_loss(batch, generator) + self.weight * self.regression(batch, generator)

    def regression(self, batch: PathBatch, generator: torch.Generator) -> Tensor:
        """From a state of each path, drawn evenly among the student's times, to the path's end: a scalar."""
        student, steps = self.dmd2.student, len(batch.times) - 1
        k = torch.randint(steps, (len(batch.states),), generator=generator).to(batch.states.device)
        x_t, t = batch.at(k)
        return self.distance(student.schedule, student(x_t, t, batch.cond), x_t, t, batch.states[:, -1])
