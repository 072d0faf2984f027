"""A mixture as teacher and a small network as student: what the distillation tests share."""

from __future__ import annotations

import copy
from functools import cache

import torch
from torch import Tensor, nn

from fewstep.diffusion.analytic import GaussianMixture
from fewstep.diffusion.samplers import flow_times
from fewstep.diffusion.schedule import Schedule
from fewstep.distill.data.paths import PathTask
from fewstep.distill.data.samples import PathBatch
from fewstep.distill.engine.roles import Network

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


class ExactConsistency(nn.Module):
    """Where the path of a class's Gaussian through x_t ends: mean + s·(x_t − alpha·mean)/√(alpha²s² + sigma²)."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.schedule = schedule

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        alpha, sigma = (value.to(x_t.dtype)[:, None] for value in (self.schedule.alpha(t), self.schedule.sigma(t)))
        mean, std = MIXTURE.means[cond].to(x_t.dtype), MIXTURE.stds[cond, None].to(x_t.dtype)
        end = mean + std * (x_t - alpha * mean) / (alpha**2 * std**2 + sigma**2).sqrt()
        return self.schedule.from_x0(end, x_t, t)


def data(step: int, size: int = 256) -> PathBatch:
    """The x0 of a step, drawn from the mixture: all under class 0, which `teacher(0.0)` does not look at."""
    x0 = MIXTURE.sample(size, torch.Generator().manual_seed(step))
    return PathBatch(x0[:, None], (0.0,), torch.zeros(size, dtype=torch.long))


@cache
def _fitted() -> Net:
    student, exact, batch = net(), teacher(0.0), 256
    optimizer = torch.optim.Adam(student.parameters(), 1e-2)
    generator = torch.Generator().manual_seed(0)
    for step in range(300):
        t, noise = torch.rand(batch, generator=generator), torch.randn(batch, 2, generator=generator)
        x0, cond = data(10_000 + step, batch).states[:, -1], torch.zeros(batch, dtype=torch.long)
        x_t = Schedule.flow().add_noise(x0, noise, t)
        loss = (student(x_t, t, cond) - exact(x_t, t, cond)).square().mean()
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / 300)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return student


def fitted() -> Network:
    """A network that has learnt the velocity of the mixture as a whole: what a student starts from."""
    return Network(copy.deepcopy(_fitted()), Schedule.flow())


def sliced_distance(a: Tensor, b: Tensor) -> float:
    """The mean over 64 directions of the Wasserstein distance between projections of equally many points (n, 2)."""
    angles = torch.arange(64) * torch.pi / 64
    lines = torch.stack([angles.cos(), angles.sin()])
    return float(((a @ lines).sort(dim=0).values - (b @ lines).sort(dim=0).values).abs().mean().detach())
