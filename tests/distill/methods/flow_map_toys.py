"""What the tests of flow maps share: one Gaussian, whose flow map is known, and a ring with a network that knows it."""

from __future__ import annotations

from functools import cache

import torch
from torch import nn

from fewstep.diffusion.analytic import GaussianMixture
from fewstep.diffusion.samplers import euler, flow_times
from fewstep.diffusion.schedule import Schedule
from fewstep.distill.data.samples import PathBatch
from fewstep.distill.engine.loop import Settings, train
from fewstep.distill.engine.roles import Network, student_of
from fewstep.distill.mixtures import Exact, MixtureTask, ring
from fewstep.distill.two_times import TwoTimes, along

FLOW = Schedule.flow()
MEAN, STD = torch.tensor([1.5, -0.5], dtype=torch.float64), 0.6
GAUSSIAN = Network(Exact(GaussianMixture(MEAN[None], torch.full((1,), STD), torch.ones(1)), FLOW), FLOW)
TASK = MixtureTask(ring(5, std=0.25), labelled=False)
NOISE = TASK.noise(1000, seed=7)


class GaussianMap(TwoTimes):
    """u(x_t, r, t) of N(MEAN, STD²), whose paths keep x's place in units of the deviation s about the moving mean m:

    x_r = m_r + (s_r/s_t)·(x_t − m_t) with m_t = (1 − t)·MEAN and s_t² = (1 − t)²·STD² + t². u = (x_t − x_r)/(t − r) is
    written without a division by t − r.
    """

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__(nn.ModuleDict({"time_embed": nn.Linear(1, 1)}))
        self.gain = nn.Parameter(torch.tensor(gain, dtype=torch.float64))

    def forward(self, x_t, t, cond=None):
        r = t - self.length.value
        t, r = t[:, None], r[:, None] if r.dim() else r
        s_t, s_r = (((1 - time) ** 2 * STD**2 + time**2).sqrt() for time in (t, r))
        stretched = (t + r - STD**2 * (2 - t - r)) / (s_t + s_r)
        return -MEAN + self.gain * stretched * (x_t - (1 - t) * MEAN) / s_t


def gaussian_batch(n=512, seed=0):
    x0 = MEAN + STD * torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return PathBatch(torch.stack([x0 * torch.nan, x0], dim=1), (1.0, 0.0), None)


def ring_batch(step):
    x0, _ = TASK.samples(256, seed=step)
    return PathBatch(torch.stack([x0 * torch.nan, x0], dim=1), (1.0, 0.0), None)


@cache
def _fitted():
    net, draw = TASK.student(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(net.module.parameters(), lr=1e-2)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / 300)
        t = torch.rand(256, generator=draw)
        x_t = FLOW.add_noise(TASK.mixture.sample(256, draw), torch.randn(256, 2, generator=draw), t)
        optimizer.zero_grad()
        (net(x_t, t) - TASK.teacher(x_t, t)).square().mean().backward()
        optimizer.step()
    return net


def fitted():
    """A student of two times that starts from a network of the ring's velocity."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return student_of(_fitted(), TwoTimes(_fitted().module))


def distances(student, steps=(1, 2, 4)):
    """The energy distance to the ring in so many steps."""
    with torch.no_grad():
        return [TASK.distance(euler(along(student, flow_times(n)), NOISE, flow_times(n))) for n in steps]


def trained(method, folder, steps=200):
    done = train(method, ring_batch, folder, Settings(steps, rate=3e-3, ema=0.98), show=False)
    return method.student.with_module(done.averages["student"])
