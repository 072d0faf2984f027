"""The mixture task: its distance against draws and by hand, its teacher, and the few lines that it is there to show."""

from __future__ import annotations

import math

import pytest
import torch

from fewstep.diffusion.analytic import GaussianMixture
from fewstep.diffusion.samplers import euler, flow_times
from fewstep.distill.data.paths import make_paths
from fewstep.distill.engine.loop import Settings, train
from fewstep.distill.methods.kd import KD
from fewstep.distill.mixtures import MixtureTask, energy_distance, mean_distance, ring
from fewstep.errors import InputError


@pytest.mark.parametrize("dim", [1, 2, 3, 8])
def test_the_mean_distance_is_that_of_draws(dim):
    draw = torch.Generator().manual_seed(dim)
    x, means = 3 * torch.randn(4, dim, generator=draw), torch.randn(2, dim, generator=draw)
    stds = torch.tensor([0.5, 1.5])
    drawn = means + stds[:, None] * torch.randn(100_000, 2, dim, generator=draw)
    by_draws = torch.stack([(point - drawn).norm(dim=-1).mean(0) for point in x]).double()
    torch.testing.assert_close(mean_distance(x, means, stds**2), by_draws, rtol=0, atol=0.02)


def test_the_mean_distance_of_a_normal_from_its_mean_is_known():
    origin = torch.zeros(1, 1)
    assert float(mean_distance(origin, origin, torch.ones(1))) == pytest.approx(math.sqrt(2 / math.pi))
    plane = torch.zeros(1, 2)
    assert float(mean_distance(plane, plane, torch.ones(1))) == pytest.approx(math.sqrt(math.pi / 2))


def test_the_mean_distance_far_away_and_from_a_point_is_the_distance():
    x = torch.tensor([[1.0], [30.0], [1e3], [1e6], [0.0]])
    near = mean_distance(x, torch.zeros(1, 1), torch.tensor([0.0]))
    torch.testing.assert_close(near, x.double())
    far = mean_distance(x[1:4], torch.zeros(1, 1), torch.tensor([0.01]))
    torch.testing.assert_close(far, x[1:4].double(), rtol=1e-5, atol=0)


def test_the_energy_distance_of_two_points_is_by_hand():
    """Y is always 1. Of X in 0 and 2: 2·1 − 2 − 0 = 0, the 2 for the one pair of rows; of X in 0 and 0: 2·1 − 0 − 0."""
    at_one = GaussianMixture(torch.ones(1, 1), torch.zeros(1), torch.ones(1))
    assert energy_distance(torch.tensor([[0.0], [2.0]]), at_one) == pytest.approx(0.0)
    assert energy_distance(torch.zeros(2, 1), at_one) == pytest.approx(2.0)


def test_own_samples_are_near_and_fewer_modes_are_far():
    task = MixtureTask(ring(6))
    x, labels = task.samples(1500)
    assert abs(task.distance(x)) < 0.01
    assert abs(task.distance(x, labels)) < 0.002
    two = x[labels < 2]
    assert task.distance(two) > 1.0  # each is a sample of the mixture; most of it is missing
    assert task.distance(x.mean(0) + 0.01 * (x - x.mean(0))) > 0.5


def test_the_distance_of_own_samples_is_zero_on_average():
    task = MixtureTask(ring(3, std=0.5), labelled=False)
    drawn = [task.distance(task.samples(50, seed)[0]) for seed in range(100)]
    mean, error = sum(drawn) / 100, torch.tensor(drawn).std() / 10
    assert abs(mean) < 3 * error
    assert min(drawn) < 0


@pytest.mark.parametrize("labelled", [True, False])
def test_the_teacher_makes_the_mixture_in_many_steps_and_not_in_few(labelled):
    task = MixtureTask(ring(8), labelled)
    noise, labels = task.noise(1000), task.labels(1000)
    far, near = (abs(task.distance(euler(task.teacher, noise, flow_times(steps), labels), labels)) for steps in (2, 64))
    assert near < 0.01 < 0.05 < far


def test_a_guided_teacher_goes_away_from_the_other_modes():
    plain, guided = (MixtureTask(ring(3, std=0.5), scale=scale).teacher for scale in (1.0, 3.0))
    x, t, label = torch.zeros(1, 2), 0.5, torch.tensor([0])
    away = guided(x, t, label) - plain(x, t, label)
    assert float(away[0, 0]) < 0  # v = noise − x0, and mode 0 is on the right
    torch.testing.assert_close(guided(x, t), plain(x, t))


def test_the_lines_that_the_module_shows(tmp_path):
    task = MixtureTask(ring(8))
    student = task.student()
    paths = make_paths(task.teacher, task.paths(2000, steps=2), tmp_path / "paths", show=False)
    done = train(KD(student), paths.batches(256), tmp_path / "run", Settings(250, rate=5e-3, ema=0.98), show=False)
    noise, labels = task.noise(1000, seed=1), task.labels(1000, seed=1)
    x0 = euler(student.with_module(done.averages["student"]), noise, paths.times, labels)
    few = euler(task.teacher, noise, paths.times, labels)
    assert task.distance(x0, labels) < task.distance(few, labels) / 3


def test_what_does_not_fit_is_refused():
    mixture = ring(4)
    for x in (torch.zeros(1, 2), torch.zeros(5, 3), torch.zeros(4)):
        with pytest.raises(InputError, match="'x' of energy_distance"):
            energy_distance(x, mixture)
