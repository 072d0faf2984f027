"""What the methods share that ask a teacher's score: noise levels, its guidance, the critic and weights held still.

The critic is a denoiser of the student's distribution ("fake score"): trained on its samples, so that beside the
teacher's ("real") it tells which way the student's density should move.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.diffusion.schedule import Schedule, Time
from fewstep.distill.data.seeds import generator as seeded
from fewstep.distill.engine.roles import Swappable
from fewstep.distill.losses import Distance
from fewstep.distill.methods.backward import noised
from fewstep.errors import InputError, bad_value

EVERYWHERE = (0.0, 1.0)  # all noise levels u = sigma/(alpha + sigma)


@dataclass(frozen=True)
class Levels:
    """A distribution of noise levels, one for every schedule: of u = sigma/(alpha + sigma), which is a flow's time.

    Attributes:
        low, high: u stays within them, as scores say nothing at the ends (2% in DMD2).
        shift: moves u to shift·u / (1 + (shift − 1)·u), as samplers of large images do; above 1 is noisier.
        std: None draws u evenly; a number makes logit(u) normal with this deviation (arXiv 2403.03206, equation 19),
            and the shift makes its mean log(shift).

    Raises:
        InputError: a value out of its range.
    """

    low: float = 0.02
    high: float = 0.98
    shift: float = 1.0
    std: float | None = None

    def __post_init__(self) -> None:
        rules = {
            "low": (0 <= self.low < 1, "in [0, 1)"),
            "high": (self.low < self.high <= 1, f"above the low of {self.low} and at most 1"),
            "shift": (self.shift > 0, "above 0"),
            "std": (self.std is None or self.std > 0, "above 0, or None"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise InputError(bad_value(name, "the noise levels", rule, getattr(self, name)))

    def draw(self, schedule: Schedule, samples: int, generator: torch.Generator) -> Tensor:
        """Times of shape (samples,), float64."""
        if self.std is None:
            u = torch.rand(samples, generator=generator, dtype=torch.float64)
        else:
            u = (self.std * torch.randn(samples, generator=generator, dtype=torch.float64)).sigmoid()
        u = self.low + (self.high - self.low) * self.shift * u / (1 + (self.shift - 1) * u)
        return schedule.time_of(u / (1 - u))


def flow_time(schedule: Schedule, t: Time) -> Tensor:
    """u = sigma/(alpha + sigma) in [0, 1]: float64, shape of t."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return sigma / (alpha + sigma)


def spread(x: Tensor, real: Tensor) -> Tensor:
    """mean|x − real| of each sample, shaped to divide it: what differences of scores are measured in.

    `x` is the student's sample and `real` the teacher's x0 of it, noised: the noisier, the further apart. No gradient.
    (arXiv 2311.18828, equation 8; arXiv 2404.04057, section 4.)
    """
    apart = (x - real).detach().abs().flatten(1).mean(dim=1).clamp(min=1e-5)
    return apart.view(-1, *[1] * (x.dim() - 1))


@dataclass(frozen=True, eq=False)
class GuidedWithin:
    """A `Denoiser`: a teacher that is guided at some noise levels, and at others only knows the condition.

    Guidance decides what there is at high noise; what it points at is no distribution, and where details are drawn it
    drives a student that trains for long to ever stronger colours (arXiv 2404.07724).

    Attributes:
        teacher: with its guidance.
        levels: u = sigma/(alpha + sigma) from the first to the second of them.

    Raises:
        InputError: levels that are no range in [0, 1].
    """

    teacher: Swappable
    levels: tuple[float, float] = EVERYWHERE

    def __post_init__(self) -> None:
        low, high = self.levels
        if not 0 <= low < high <= 1:
            raise InputError(bad_value("guided", "a teacher", "two rising numbers in [0, 1]", self.levels))

    @property
    def schedule(self) -> Schedule:
        return self.teacher.schedule

    @property
    def told(self) -> Swappable:
        """The teacher without guidance: it only knows the condition."""
        return self.teacher.with_module(self.teacher.module, guided=False)

    def __call__(self, x_t: Tensor, t: Time, cond: Any = None) -> Tensor:
        """The prediction at x_t (batch, …) and t, a float or (batch,): shape of x_t."""
        u = flow_time(self.schedule, t)
        inside = (self.levels[0] <= u) & (u <= self.levels[1])
        if inside.all():
            return self.teacher(x_t, t, cond)
        if not inside.any():
            return self.told(x_t, t, cond)
        return torch.where(
            inside.to(x_t.device).view(-1, *[1] * (x_t.dim() - 1)), self.teacher(x_t, t, cond), self.told(x_t, t, cond)
        )

    @torch.no_grad()
    def check(self, x0: Tensor, cond: Any) -> None:
        """That `levels` do something, for samples like x0 (batch, …); to be asked for once, before training.

        Raises:
            InputError: they are beside a teacher without guidance.
        """
        if self.levels == EVERYWHERE:
            return
        x_t = noised(self.schedule, x0, t := self.schedule.time_of(1.0), seeded("guidance", "check"))
        if torch.equal(self.teacher(x_t, t, cond), self.told(x_t, t, cond)):
            raise InputError("'guided' says at which noise levels the teacher is guided, and it is not guided at all.")


@contextmanager
def held(*modules: nn.Module) -> Iterator[None]:
    """Graphs built inside run through these modules, but do not reach their weights: no gradient is kept for them."""
    weights = [p for module in modules for p in module.parameters() if p.requires_grad]
    for p in weights:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in weights:
            p.requires_grad_(True)


@dataclass(frozen=True, eq=False)
class Critic:
    """The denoiser of the student's samples, and what it learns from: these samples, noised.

    `denoiser` is unguided and starts best from the teacher's weights (`roles.student_of`); `levels` are nearly all.
    """

    denoiser: Swappable
    levels: Levels = field(default_factory=lambda: Levels(low=0.001, high=0.999))
    distance: Distance = field(default_factory=Distance)

    @property
    def module(self) -> nn.Module:
        return self.denoiser.module

    def loss(self, x: Tensor, cond: Any, generator: torch.Generator) -> Tensor:
        """Denoising the student's samples x (batch, …), which get no gradient: a scalar."""
        schedule, x = self.denoiser.schedule, x.detach()
        t = self.levels.draw(schedule, len(x), generator)
        x_t = noised(schedule, x, t, generator)
        return self.distance(schedule, self.denoiser(x_t, t, cond), x_t, t, x)


def at_least_one(name: str, owner: str, steps: int) -> None:
    """Raises InputError where a number of steps is below 1."""
    if steps < 1:
        raise InputError(bad_value(name, owner, "at least 1", steps))
