"""A mixture as teacher and a small network as student: what the distillation tests share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fewstep.diffusion.analytic import GaussianMixture
from fewstep.diffusion.samplers import flow_times
from fewstep.diffusion.schedule import Schedule
from fewstep.distill.paths import PathTask
from fewstep.distill.roles import Network

MIXTURE = GaussianMixture(
    torch.tensor([[2.0, 0.0], [-1.5, 1.0], [0.0, -2.0]]), torch.tensor([0.2, 0.3, 0.2]), torch.tensor([0.4, 0.3, 0.3])
)
CLASSES = 3
SCALE = 1.5


class GuidedMixture(nn.Module):
    """The exact velocity of the mixture's class, with classifier-free guidance; a module that trains nothing."""

    def __init__(self, scale: float = SCALE) -> None:
        super().__init__()
        self.exact, self.scale = MIXTURE.denoiser(Schedule.flow()), scale

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        away = self.exact(x_t, t)
        return away + self.scale * (self.exact(x_t, t, cond) - away)


class Net(nn.Module):
    """A small velocity network of (x_t, t, class)."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.embed = nn.Embedding(CLASSES, 8)
        self.layers = nn.ModuleList(
            [nn.Linear(2 + 2 + 8, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2)]
        )

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        h = torch.cat([x_t, t[:, None], t[:, None] ** 2, self.embed(cond)], dim=1)
        for layer in self.layers:
            h = layer(h)
        return h


def net(seed: int = 0, width: int = 48) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net(width)


def teacher(scale: float = SCALE) -> Network:
    return Network(GuidedMixture(scale), Schedule.flow())


def path_task(samples: int, steps: int, teacher_steps: int = 32) -> PathTask:
    classes = [i % CLASSES for i in range(samples)]
    return PathTask(classes, lambda some: torch.tensor(list(some)), (2,), tuple(flow_times(teacher_steps)), steps)
