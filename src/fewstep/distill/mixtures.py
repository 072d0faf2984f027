"""Another domain in a few lines: points of a Gaussian mixture, where samples, teacher and distance are all exact.

    task = MixtureTask(ring(8))
    student = task.student()
    paths = make_paths(task.teacher, task.paths(4000, steps=4), "paths")
    done = train(KD(student), paths.batches(256), "run", Settings(400, rate=3e-3))
    noise, labels = task.noise(2000), task.labels(2000)
    x0 = euler(student.with_module(done.averages["student"]), noise, paths.times, labels)
    print(task.distance(x0, labels))       # 0 for the mixture's own samples, up to their number

A domain of your own needs the same: a module called as `module(x_t, t, cond)`, its schedule, and a distance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.special import gammaln, hyp1f1
from torch import Tensor, nn

from fewstep.diffusion.analytic import GaussianMixture
from fewstep.diffusion.samplers import flow_times
from fewstep.diffusion.schedule import Schedule
from fewstep.distill.data.paths import PathTask
from fewstep.distill.data.seeds import derive, generator
from fewstep.distill.engine.roles import Network
from fewstep.distill.two_times import Waves
from fewstep.errors import InputError, bad_value


def ring(modes: int, radius: float = 2.0, std: float = 0.15) -> GaussianMixture:
    """`modes` equal Gaussians on a circle in the plane."""
    angles = 2 * math.pi * torch.arange(modes) / modes
    means = radius * torch.stack([angles.cos(), angles.sin()], dim=1)
    return GaussianMixture(means, torch.full((modes,), std), torch.full((modes,), 1 / modes))


class MLP(nn.Module):
    """A small denoiser of points, called as `mlp(x_t, t, cond)`: x_t (batch, dim), t (batch,) in [0, 1], cond (batch,).

    `cond` is a label below `labels`, or None where there are none. Time and label enter every layer.
    """

    def __init__(self, dim: int, labels: int = 0, width: int = 64, depth: int = 3) -> None:
        super().__init__()
        self.time_embed = nn.Sequential(Waves(), nn.Linear(Waves.SIZE, width))
        self.label_embed = nn.Embedding(labels, width) if labels else None
        self.enter = nn.Linear(dim, width)
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(depth)])
        self.leave = nn.Linear(width, dim)

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        told = self.time_embed(t)
        if self.label_embed is not None and cond is not None:
            told = told + self.label_embed(cond)
        h = self.enter(x_t)
        for layer in self.layers:
            h = h + layer(nn.functional.silu(h + told))
        out: Tensor = self.leave(nn.functional.silu(h))
        return out


class Exact(nn.Module):
    """The mixture's own denoiser as a module that trains nothing; `scale` above 1 guides it away from no label."""

    def __init__(self, mixture: GaussianMixture, schedule: Schedule, scale: float = 1.0) -> None:
        super().__init__()
        self.denoiser, self.scale = mixture.denoiser(schedule), scale

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        if cond is None:
            return self.denoiser(x_t, t)
        if self.scale == 1:
            return self.denoiser(x_t, t, cond)
        away = self.denoiser(x_t, t)
        return away + self.scale * (self.denoiser(x_t, t, cond) - away)


@dataclass(frozen=True, eq=False)
class MixtureTask:
    """Points of a mixture, each asked for by its component's number; with `labelled` False by nothing at all.

    `scale` guides the teacher. Above 1 its samples are no longer the mixture's, and `distance` holds no zero.
    """

    mixture: GaussianMixture
    labelled: bool = True
    scale: float = 1.0

    @property
    def dim(self) -> int:
        return self.mixture.means.shape[1]

    @property
    def teacher(self) -> Network:
        return Network(Exact(self.mixture, Schedule.flow(), self.scale), Schedule.flow())

    def student(self, seed: int = 0, width: int = 64, depth: int = 3) -> Network:
        """Untrained."""
        with torch.random.fork_rng():
            torch.manual_seed(derive("mixture student", seed))
            mlp = MLP(self.dim, len(self.mixture.means) if self.labelled else 0, width, depth)
        return Network(mlp, Schedule.flow())

    def noise(self, n: int, seed: int = 0) -> Tensor:
        """(n, dim)."""
        return torch.randn(n, self.dim, generator=generator("mixture noise", seed))

    def labels(self, n: int, seed: int = 0) -> Tensor | None:
        """Components in the proportion of their weights, (n,), or None without labels."""
        if not self.labelled:
            return None
        return torch.multinomial(self.mixture.weights, n, replacement=True, generator=generator("labels", seed))

    def samples(self, n: int, seed: int = 0) -> tuple[Tensor, Tensor | None]:
        """Exact draws (n, dim) and their labels."""
        labels, draw = self.labels(n, seed), generator("mixture", seed)
        if labels is None:
            return self.mixture.sample(n, draw), None
        noise = torch.randn(n, self.dim, generator=draw)
        return self.mixture.means[labels] + self.mixture.stds[labels, None] * noise, labels

    def paths(self, samples: int, steps: int, teacher_steps: int = 32, seed: int = 0) -> PathTask:
        """Teacher paths to make, of which the student's `steps` are kept."""
        labels = self.labels(samples, seed)
        prompts = [0] * samples if labels is None else labels.tolist()

        def condition(some: Sequence[Any]) -> Tensor | None:
            return torch.tensor(list(some)) if self.labelled else None

        return PathTask(prompts, condition, (self.dim,), tuple(flow_times(teacher_steps)), steps)

    def distance(self, x0: Tensor, labels: Tensor | None = None) -> float:
        """`energy_distance` of x0 (n, dim) to the mixture; with labels the mean over those of each to its component."""
        if labels is None:
            return energy_distance(x0, self.mixture)
        present = [k for k in range(len(self.mixture.means)) if int((labels == k).sum()) > 1]
        return sum(energy_distance(x0[labels == k], self._component(k)) for k in present) / len(present)

    def _component(self, k: int) -> GaussianMixture:
        one = slice(k, k + 1)
        return GaussianMixture(self.mixture.means[one], self.mixture.stds[one], torch.ones(1))


def energy_distance(x: Tensor, mixture: GaussianMixture) -> float:
    """2·E|X − Y| − E|X − X'| − E|Y − Y'|, with X the rows of x (n, d) and Y the mixture (Székely & Rizzo 2013).

    It is 0 only where both are the same distribution. The terms with Y are exact and that of pairs of rows leaves out
    those of a row with itself, so own samples get 0 on average, a little more or less in a draw.

    Raises:
        InputError: fewer than two rows, or of another dimension than the mixture's.
    """
    if x.dim() != 2 or len(x) < 2 or x.shape[1] != mixture.means.shape[1]:
        raise InputError(bad_value("x", "energy_distance", f"(n ≥ 2, {mixture.means.shape[1]})", tuple(x.shape)))
    x = x.detach().double()
    between = mean_distance(x, mixture.means, mixture.stds**2) @ mixture.weights.double()
    variances = mixture.stds[:, None] ** 2 + mixture.stds**2  # of Y − Y'
    within = mean_distance(mixture.means, mixture.means, variances)
    own = mixture.weights.double() @ within @ mixture.weights.double()
    return float(2 * between.mean() - torch.pdist(x).mean() - own)


def mean_distance(x: Tensor, means: Tensor, variances: Tensor) -> Tensor:
    """E|x − Y| for Y ~ N(mean, variance·1): x (n, d), means (k, d), variances (k,) or (n, k) -> (n, k), float64.

    The mean of a noncentral chi distribution with d degrees of freedom: with s the standard deviation,
    s·√2·Γ((d+1)/2)/Γ(d/2)·₁F₁(−½; d/2; −|x − mean|²/(2s²)); |x − mean| where s is 0.
    """
    d = x.shape[1]
    apart = torch.cdist(x.double(), means.double())
    s = variances.double().sqrt().expand(apart.shape)
    ratio = apart**2 / (2 * s.clamp(min=1e-12) ** 2)
    spread = math.exp(gammaln((d + 1) / 2) - gammaln(d / 2)) * torch.from_numpy(hyp1f1(-0.5, d / 2, -ratio.numpy()))
    return torch.where(ratio > 1e8, apart, s * math.sqrt(2) * spread)
