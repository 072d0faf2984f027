"""Teacher and student: plain denoisers over modules that can be swapped."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fewstep.diffusion.schedule import Denoiser, Schedule, Time


class Swappable(Denoiser, Protocol):
    """A denoiser that runs over one module and can be had over another: a traced pipeline, or a `Network`."""

    @property
    def module(self) -> nn.Module: ...

    def with_module(self, module: nn.Module, guided: bool = False) -> Swappable:
        """The same denoiser over other weights; without `guided` one call a step, as theirs is inside."""
        ...


@dataclass(frozen=True, eq=False)
class Network:
    """A module called as `module(x_t, t, cond)` with t of shape (batch,) as a denoiser."""

    module: nn.Module
    schedule: Schedule

    def __call__(self, x_t: Tensor, t: Time, cond: Any = None) -> Tensor:
        times = torch.as_tensor(t, dtype=x_t.dtype, device=x_t.device).expand(len(x_t))
        prediction: Tensor = self.module(x_t, times, cond)
        return prediction

    def with_module(self, module: nn.Module, guided: bool = False) -> Network:
        """The same over other weights; it has no guidance either way."""
        return replace(self, module=module)


class Roles(Protocol):
    """Where the trained networks beside a teacher come from: `Copies`, or `lora.Shared`."""

    def student(self, weights: nn.Module | None) -> Swappable:
        """One to train, from the weights that an earlier training ended with, or the teacher's."""
        ...

    def another(self) -> Swappable:
        """One more of its kind, from the teacher's weights."""
        ...

    def plain(self, weights: nn.Module) -> nn.Module:
        """What was trained as a module of the teacher's class."""
        ...


@dataclass(frozen=True, eq=False)
class Copies:
    """Each network is a float32 copy of the teacher's."""

    teacher: Swappable

    def student(self, weights: nn.Module | None) -> Swappable:
        return student_of(self.teacher, weights)

    def another(self) -> Swappable:
        return student_of(self.teacher)

    def plain(self, weights: nn.Module) -> nn.Module:
        return weights


def student_of(teacher: Swappable, weights: nn.Module | None = None) -> Swappable:
    """A trainable float32 copy of the teacher (or of `weights`) that needs no guidance: one call a step."""
    module = copy.deepcopy(teacher.module if weights is None else weights).float().requires_grad_(True)
    return teacher.with_module(module.train(), guided=False)


def device_of(module: nn.Module) -> torch.device:
    """Where its first parameter lives."""
    return next((p.device for p in module.parameters()), torch.device("cpu"))
