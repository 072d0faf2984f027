"""Students of a guided mixture against the exact ends of their teacher's paths, and the teacher in as few steps."""

from __future__ import annotations

import json

import pytest
import torch

from fewstep.diffusion.samplers import dpmpp_2m, euler, flow_times
from fewstep.diffusion.schedule import Schedule
from fewstep.distill.data.paths import PathSettings, make_paths
from fewstep.distill.engine.loop import Settings, train
from fewstep.distill.engine.roles import Network
from fewstep.distill.losses import Distance
from fewstep.distill.methods.kd import KD
from fewstep.distill.methods.progressive import Progressive, euler_step, halvings
from fewstep.errors import InputError
from tests.distill.toys import CLASSES, GuidedMixture, net, path_task, teacher

ITERATIONS = 300


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paths")
    return make_paths(teacher(), path_task(3000, 4), folder, PathSettings(batch=1000, shard=1000), show=False)


@pytest.fixture(scope="module")
def unseen():
    """Noise, classes and the guided teacher's exact end for them."""
    noise = torch.randn(600, 2, generator=torch.Generator().manual_seed(99))
    classes = torch.arange(600) % CLASSES
    return noise, classes, dpmpp_2m(teacher(), noise, flow_times(128), classes)


def distance(a, b):
    return float((a - b).detach().norm(dim=1).mean())


@pytest.mark.parametrize("huber", [0.0, 0.03])
def test_kd_beats_the_teacher_in_as_few_steps(paths, unseen, tmp_path, huber):
    noise, classes, exact = unseen
    student = Network(net(), Schedule.flow())
    kd = KD(student, Distance(huber=huber))
    settings = Settings(ITERATIONS, rate=1e-2, warmup=20, ema=0.98)
    done = train(kd, paths.batches(256), tmp_path, settings, show=False)
    average = student.with_module(done.averages["student"])
    ours = distance(euler(average, noise, flow_times(4), classes), exact)
    best = min(distance(solve(teacher(), noise, flow_times(4), classes), exact) for solve in (euler, dpmpp_2m))
    assert ours < best / 2, (ours, best)
    losses = [json.loads(line)["loss"]["student"] for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    assert sum(losses[-20:]) < sum(losses[:20]) / 3


def test_kd_asks_for_each_step_of_the_path(paths):
    """A student that gives the path's own velocity at every state has no loss."""
    batch = paths.read(range(8))

    class Oracle(torch.nn.Module):
        def forward(self, x_t, t, cond):
            k = [batch.times.index(float(one)) for one in t]
            rows = torch.arange(8)
            step = torch.tensor([batch.times[i] - batch.times[i + 1] for i in k])
            return (batch.states[rows, k] - batch.states[rows, torch.tensor(k) + 1]) / step[:, None]

    kd = KD(Network(Oracle(), Schedule.flow()))
    for seed in range(5):
        (update,) = kd.updates(batch, torch.Generator().manual_seed(seed))
        assert float(update.loss) < 1e-8


def test_progressive_stages_keep_close_to_two_teacher_steps(paths, unseen, tmp_path):
    noise, classes, exact = unseen
    source, weights = teacher(), net()
    errors = {}
    for steps in halvings(16, 4):
        student = Network(weights, Schedule.flow())
        stage = Progressive(student, source, flow_times(2 * steps))
        settings = Settings(ITERATIONS, rate=1e-2 if steps == 8 else 3e-3, warmup=20, ema=0.98)
        done = train(stage, paths.batches(256), tmp_path / str(steps), settings, show=False)
        weights = done.averages["student"].requires_grad_(True)
        source = Network(weights, Schedule.flow())
        weights = net()
        weights.load_state_dict(source.module.state_dict())
        errors[steps] = distance(euler(source, noise, flow_times(steps), classes), exact)
    of_teacher = distance(euler(teacher(), noise, flow_times(4), classes), exact)
    assert errors[4] < 0.7 * of_teacher, (errors, of_teacher)


def test_progressive_target_is_two_steps_of_the_guided_teacher(paths):
    batch, seen = paths.read(range(16)), {}

    class Recording(torch.nn.Module):
        def forward(self, x_t, t, cond):
            seen.update(x_t=x_t, t=t)
            return torch.zeros_like(x_t)

    for renoise in (True, False):
        stage = Progressive(Network(Recording(), Schedule.flow()), teacher(), flow_times(8), renoise=renoise)
        (update,) = stage.updates(batch, torch.Generator().manual_seed(0))
        x_t, t = seen["x_t"], seen["t"]
        ends = torch.stack(
            [euler(teacher(), x, [float(u), float(u) - 1 / 8, float(u) - 2 / 8], c)[0]
             for x, u, c in zip(x_t[:, None], t, batch.cond[:, None], strict=True)]
        )  # fmt: skip
        wanted = (x_t - ends) / (2 / 8)
        torch.testing.assert_close(update.loss, wanted.square().mean(), rtol=1e-3, atol=0)
    assert all(any(torch.equal(x, state) for state in path) for x, path in zip(x_t, batch.states, strict=True))


def test_progressive_refuses_times_it_can_not_halve_or_find(paths):
    student = Network(net(), Schedule.flow())
    with pytest.raises(InputError, match="'steps' of a progressive stage's teacher must be even"):
        Progressive(student, teacher(), flow_times(3))
    stage = Progressive(student, teacher(), flow_times(12), renoise=False)
    with pytest.raises(InputError, match="paths' times"):
        list(stage.updates(paths.read(range(64)), torch.Generator().manual_seed(0)))


def test_halvings():
    assert halvings(16, 4) == [8, 4]
    assert halvings(2, 1) == [1]
    for first, last in ((12, 4), (4, 4), (2, 4), (6, 0)):
        with pytest.raises(InputError, match="'teacher_steps' of progressive distillation"):
            halvings(first, last)


def test_guidance_moves_the_teacher():
    """The oracle itself: with guidance the ends differ, or the tests above would prove nothing about it."""
    x, t, cond = torch.zeros(3, 2), torch.full((3,), 0.5), torch.arange(3)
    assert not torch.allclose(GuidedMixture(1.0)(x, t, cond), GuidedMixture(3.0)(x, t, cond))
    assert euler_step(teacher(), x, t, t - 0.1, cond).shape == (3, 2)
