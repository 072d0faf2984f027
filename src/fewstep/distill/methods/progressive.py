"""Progressive distillation (arXiv 2202.00512): two teacher steps become one student step, again and again.

Stage by stage the steps halve, the rate anneals to 0 within each stage, and the student becomes the next teacher. In
the first stage the teacher is the guided pipeline, so its guidance ends up inside the student (arXiv 2210.03142).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fewstep.distill.data.samples import PathBatch
from fewstep.distill.engine.loop import Update
from fewstep.distill.engine.roles import Swappable
from fewstep.distill.losses import Distance, step_target
from fewstep.errors import InputError, bad_value


@dataclass(frozen=True, eq=False)
class Progressive:
    """One stage. `times` are the teacher's, an even number of steps; the student keeps every second of them.

    The states that it is trained on come from a batch of teacher paths: x0 with fresh noise (`renoise`, the paper's
    way: endless variety), or the paths' own states (what it meets in use; their times must hold the student's).

    Raises:
        InputError: an odd number of steps.
    """

    student: Swappable
    teacher: Swappable
    times: Sequence[float]
    renoise: bool = True
    distance: Distance = field(default_factory=Distance)

    def __post_init__(self) -> None:
        steps = len(self.times) - 1
        if steps < 2 or steps % 2:
            raise InputError(bad_value("steps", "a progressive stage's teacher", "even", steps))

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        return {"student": self.student.module}

    @property
    def frozen(self) -> Mapping[str, nn.Module]:
        return {"teacher": self.teacher.module}

    def updates(self, batch: PathBatch, generator: torch.Generator) -> Iterator[Update]:
        schedule, times = self.student.schedule, torch.tensor(self.times, dtype=torch.float64)
        k = 2 * torch.randint((len(times) - 1) // 2, (len(batch.states),), generator=generator)
        t, middle, s = times[k], times[k + 1], times[k + 2]
        x_t = self._noised(batch, t, generator) if self.renoise else self._on_path(batch, t)
        with torch.no_grad():
            x_middle = euler_step(self.teacher, x_t, t, middle, batch.cond)
            x_s = euler_step(self.teacher, x_middle, middle, s, batch.cond)
        wanted = step_target(schedule, x_t, t, x_s, s)
        prediction = self.student(x_t, t, batch.cond)
        yield Update("student", self.student.module, self.distance(schedule, prediction, x_t, t, wanted))

    def _noised(self, batch: PathBatch, t: Tensor, generator: torch.Generator) -> Tensor:
        x0 = batch.states[:, -1]
        noise = torch.randn(x0.shape, generator=generator).to(x0.device)
        return self.student.schedule.add_noise(x0, noise, t)

    def _on_path(self, batch: PathBatch, t: Tensor) -> Tensor:
        distance = (t[:, None] - torch.tensor(batch.times, dtype=torch.float64)).abs()
        if float(distance.min(dim=1).values.max()) > 1e-6:
            raise InputError(
                f"The paths' times {batch.times} must hold those of the student, {tuple(self.times[::2])}."
            )
        return batch.at(distance.argmin(dim=1).to(batch.states.device))[0]


def euler_step(denoiser: Swappable, x_t: Tensor, t: Tensor, s: Tensor, cond: object) -> Tensor:
    """One DDIM (for a flow: Euler) step of each sample from its own t (batch,) to its own s."""
    prediction, schedule = denoiser(x_t, t, cond), denoiser.schedule
    return schedule.add_noise(schedule.to_x0(prediction, x_t, t), schedule.to_noise(prediction, x_t, t), s)


def halvings(first: int, last: int) -> list[int]:
    """The student's steps in each stage, from a teacher of `first` steps down to `last`: 16, 4 -> [8, 4].

    Raises:
        InputError: `first` is not `last` times a power of two, or no stage is left.
    """
    stages = []
    steps = first
    while steps > last >= 1 and steps % 2 == 0:
        steps //= 2
        stages.append(steps)
    if steps != last or not stages:
        rule = f"the student's {last} times a power of two, 2 or more"
        raise InputError(bad_value("teacher_steps", "progressive distillation", rule, first))
    return stages
