"""Knowledge distillation judged as a picture is, not number by number: by what the teacher's own blocks make of it.

The mean of all that a noise may become has the least squared error, and is a blur. To the teacher, who reads samples at
every noise level and under their condition, a blur is unlike any sample. So its features serve as the measure that
LPIPS is for pixels (arXiv 1801.03924), in any latent space and with no other network (arXiv 2401.00110): the student's
end of a path and the path's own, noised alike, are to look alike to it. (arXiv 2405.05967 does so with a network that
is trained for it.) It needs neither data nor a critic, and can't collapse: every noise has its own answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.diffusion.samplers import euler
from fewstep.distill.data.samples import PathBatch
from fewstep.distill.engine.loop import Update
from fewstep.distill.engine.roles import Swappable
from fewstep.distill.losses import squared
from fewstep.distill.methods.backward import Stepping, guess
from fewstep.distill.methods.discriminator import tapped, tokens
from fewstep.distill.methods.scores import Levels, held
from fewstep.errors import InputError, bad_value


@dataclass(frozen=True, eq=False)
class Perceptual:
    """The ends of paths, in the teacher's features.

    Attributes:
        student, teacher: see `roles`; the teacher is asked without guidance.
        features: names of the teacher's modules whose outputs are compared; see `discriminator.tap_paths`.
        sampler: of the student. "euler": all its steps run from the path's noise, with a gradient. "renoise": each
            sample is trained at one of its steps, drawn evenly, from the path's state there.
        weight: of the mean squared error of x0 beside it, which alone is, in one step, `kd`.
        levels: of the noise at which the teacher looks: much of it leaves what there is, little of it how it is drawn.

    Raises:
        InputError: a `weight` below 0.
    """

    student: Swappable
    teacher: Swappable
    features: Sequence[str]
    sampler: Stepping = "euler"
    weight: float = 0.1
    levels: Levels = field(default_factory=lambda: Levels(0.02, 0.6))

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise InputError(bad_value("weight", "Perceptual", "0 or above", self.weight))

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        return {"student": self.student.module}

    @property
    def frozen(self) -> Mapping[str, nn.Module]:
        return {"teacher": self.teacher.module}

    def updates(self, batch: PathBatch, generator: torch.Generator) -> Iterator[Update]:
        made, wanted = self.end(batch, generator), batch.states[:, -1]
        loss = self.apart(made, wanted, batch.cond, generator) + self.weight * squared(made - wanted).mean()
        yield Update("student", self.student.module, loss)

    def end(self, batch: PathBatch, generator: torch.Generator) -> Tensor:
        """Where the student takes each path, x0: (batch, …) float32, with a gradient."""
        if self.sampler == "euler":
            return euler(self.student, batch.states[:, 0], batch.times, batch.cond).float()
        steps, device = len(batch.times) - 1, batch.states.device
        x_t, t = batch.at(torch.randint(steps, (len(batch.states),), generator=generator).to(device))
        return guess(self.student, x_t, t, batch.cond)

    def apart(self, made: Tensor, wanted: Tensor, cond: Any, generator: torch.Generator) -> Tensor:
        """How unlike two samples (batch, …) are to the teacher: a scalar, with a gradient in the first.

        The mean squared difference of features, each token's of mean 0 and deviation 1, over all modules: 2 for two
        that have nothing in common.
        """
        schedule, bare = self.teacher.schedule, self.teacher.with_module(self.teacher.module)
        t = self.levels.draw(schedule, len(made), generator)
        noise = torch.randn(made.shape, generator=generator).to(made.device)

        def seen(x: Tensor) -> list[Tensor]:
            found = tapped(bare, self.features, schedule.add_noise(x, noise, t), t, cond)[1]
            return [F.layer_norm(one.float(), one.shape[-1:]) for one in map(tokens, found)]

        with torch.no_grad():
            right = seen(wanted)
        with held(self.teacher.module):
            differences = [squared(a - b).mean() for a, b in zip(seen(made), right, strict=True)]
        return torch.stack(differences).mean()
