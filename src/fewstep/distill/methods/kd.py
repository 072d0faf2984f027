"""Knowledge distillation on teacher paths (arXiv 2101.02388): from a state of the path, step to the path's next state.

With x_{t_k} the teacher's states at the student's times, one student step from x_{t_k} should land on x_{t_{k+1}}; for
a flow it has to predict v = (x_{t_k} − x_{t_{k+1}}) / (t_k − t_{k+1}). One step is the pair of noise and x0. It needs
no data, runs one network, and can't collapse; where one state could go two ways it gives their mean, which is a blur.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from fewstep.distill.data.samples import PathBatch
from fewstep.distill.engine.loop import Update
from fewstep.distill.engine.roles import Swappable
from fewstep.distill.losses import Distance, step_target


@dataclass(frozen=True, eq=False)
class KD:
    """Each sample of a batch is trained at one step of its path, drawn evenly. `student`: see `roles.student_of`."""

    student: Swappable
    distance: Distance = field(default_factory=Distance)

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        return {"student": self.student.module}

    @property
    def frozen(self) -> Mapping[str, nn.Module]:
        return {}

    def updates(self, batch: PathBatch, generator: torch.Generator) -> Iterator[Update]:
        samples, steps = len(batch.states), len(batch.times) - 1
        k = torch.randint(steps, (samples,), generator=generator).to(batch.states.device)
        (x_t, t), (x_s, s) = batch.at(k), batch.at(k + 1)
        wanted = step_target(self.student.schedule, x_t, t, x_s, s)
        prediction = self.student(x_t, t, batch.cond)
        yield Update("student", self.student.module, self.distance(self.student.schedule, prediction, x_t, t, wanted))
