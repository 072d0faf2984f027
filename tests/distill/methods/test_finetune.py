"""Fine-tuning is the loss of the schedule itself: its least value is known, and who reaches it samples the data."""

from __future__ import annotations

import math

import pytest
import torch

from fewstep.diffusion.analytic import GaussianMixture
from fewstep.diffusion.samplers import dpmpp_2m, flow_times
from fewstep.diffusion.schedule import Schedule
from fewstep.distill.data.samples import PathBatch
from fewstep.distill.engine.loop import Settings, train
from fewstep.distill.engine.roles import Network
from fewstep.distill.methods.finetune import Finetune, noised_target
from fewstep.distill.methods.scores import Levels
from fewstep.distill.mixtures import Exact, MixtureTask, ring

VP = torch.linspace(0.999, 0.001, 200)
SCHEDULES = (
    Schedule.flow(),
    Schedule.flow("x0"),
    Schedule.vp(VP, "eps"),
    Schedule.vp(VP, "v"),
    Schedule.edm(),
)


def data(x0, cond=None):
    return PathBatch(torch.stack([torch.full_like(x0, torch.nan), x0], dim=1), (1.0, 0.0), cond)


def loss(network, batch, levels=None, seed=0):
    method = Finetune(network, levels or Levels(low=0.0, high=1.0))
    (update,) = method.updates(batch, torch.Generator().manual_seed(seed))
    return float(update.loss)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{s.kind}-{s.prediction}")
def test_one_who_knows_the_only_datum_has_no_loss(schedule):
    point = GaussianMixture(torch.tensor([[1.0, -2.0]]), torch.zeros(1), torch.ones(1))
    x0 = point.means.expand(256, 2)
    levels = Levels(low=0.02, high=0.98)
    assert loss(Network(Exact(point, schedule), schedule), data(x0), levels) < 1e-6
    other = GaussianMixture(torch.tensor([[1.0, 0.0]]), torch.zeros(1), torch.ones(1))
    assert loss(Network(Exact(other, schedule), schedule), data(x0), levels) > 0.1


def test_the_least_loss_of_a_flow_from_normal_to_normal_is_half_pi():
    """var(v | x_t) is 1 / ((1 − t)² + t²) for data N(0, 1), and its mean over t in [0, 1] is π/2."""
    normal = GaussianMixture(torch.zeros(1, 1), torch.ones(1), torch.ones(1))
    flow = Schedule.flow()
    exact, x0 = Network(Exact(normal, flow), flow), torch.randn(100_000, 1, generator=torch.Generator().manual_seed(1))
    assert loss(exact, data(x0)) == pytest.approx(math.pi / 2, rel=0.02)


def test_the_target_is_the_velocity_down_to_the_end():
    x0, noise = torch.randn(3, 2), torch.randn(3, 2)
    x_t, wanted = noised_target(Schedule.flow(), x0, noise, torch.tensor([1.0, 0.3, 1e-6]))
    torch.testing.assert_close(wanted, noise - x0)
    torch.testing.assert_close(x_t[0], noise[0])
    assert wanted.dtype == x_t.dtype == torch.float32


def test_times_are_drawn_as_the_levels_say():
    seen = []

    class Watching(torch.nn.Module):
        def forward(self, x_t, t, cond):
            seen.append(t)
            return torch.zeros_like(x_t)

    batch = data(torch.zeros(4000, 2))
    student = Network(Watching(), Schedule.flow())
    for method in (Finetune(student), Finetune(student, Levels(low=0.2, high=0.6))):
        next(method.updates(batch, torch.Generator().manual_seed(0)))
    logit, even = seen
    assert float(logit.logit().std()) == pytest.approx(1.0, abs=0.05)
    assert float(logit.logit().mean()) == pytest.approx(0.0, abs=0.05)
    assert float(even.min()) == pytest.approx(0.2, abs=0.01)
    assert float(even.max()) == pytest.approx(0.6, abs=0.01)
    assert len(set(even.tolist())) > 1000


def test_it_learns_the_data_of_its_label(tmp_path):
    task = MixtureTask(ring(4, std=0.3))
    student = task.student()
    settings = Settings(150, rate=1e-2, ema=0.98)
    done = train(Finetune(student), lambda step: data(*task.samples(256, seed=step)), tmp_path, settings, show=False)
    noise, labels = task.noise(1000), task.labels(1000)
    before, after = (
        task.distance(dpmpp_2m(net, noise, flow_times(16), labels), labels)
        for net in (task.student(), student.with_module(done.averages["student"]))
    )
    assert after < 0.03 < 1.0 < before, (before, after)
