"""A reward in distribution matching: the student's samples are also moved to where a judge says that they answer.

Matching distributions loses what a prompt asks for where few steps can't draw it: the teacher's score pulls towards any
of its modes. A network that tells right from wrong conditions says which way the prompt lies (arXiv 2410.18881; with
consistency distillation arXiv 2403.11027). It judges noised samples, which leaves fewer ways to please it without
answering, and what it finds right already is left alone; the distribution is held by the rest of the loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.diffusion.schedule import Schedule
from fewstep.distill.methods.backward import noised
from fewstep.distill.methods.scores import Levels, held
from fewstep.errors import InputError, bad_value


@dataclass(frozen=True, eq=False)
class Reward:
    """A judge and how much it counts.

    Attributes:
        judge: (x_t (batch, …), t (batch,), cond) -> logits (batch,) that the sample answers its condition.
        module: its weights, which are not trained.
        schedule: of the noise.
        weight: of its pull beside that of the scores; at 1, samples that are wrong are moved about as much by either.
        levels: of the noise at which it judges.

    Raises:
        InputError: a `weight` that is not above 0.
    """

    judge: Callable[[Tensor, Tensor, Any], Tensor]
    module: nn.Module
    schedule: Schedule
    weight: float = 1.0
    levels: Levels = field(default_factory=lambda: Levels(0.05, 0.6))

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise InputError(bad_value("judge_weight", "a reward", "above 0", self.weight))

    def gradient(self, x: Tensor, cond: Any, generator: torch.Generator) -> Tensor:
        """The way that raises log(1 + e^−logit) of the samples x (batch, …) fastest, weighted: shape of x.

        Slopes of the logit are scaled to a root mean square of 1 over the batch, as the scores' difference about is.
        """
        t = self.levels.draw(self.schedule, len(x), generator)
        with torch.enable_grad(), held(self.module):
            x = x.detach().requires_grad_(True)
            logits = self.judge(noised(self.schedule, x, t, generator), t, cond)
            (slopes,) = torch.autograd.grad(logits.sum(), x)
        wrong = torch.sigmoid(-logits.detach()).view(-1, *[1] * (x.dim() - 1))
        return -self.weight * wrong * slopes / slopes.square().mean().sqrt().clamp(min=1e-8)
