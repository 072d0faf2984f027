"""Reflow on the pairs of a mixture's own paths: straight lines between them, and one step that is nearly enough."""

from __future__ import annotations

import pytest
import torch

from fewstep.diffusion.samplers import euler, flow_times
from fewstep.diffusion.schedule import Schedule
from fewstep.distill.data.paths import PathSettings, make_paths, start_from
from fewstep.distill.data.samples import PathBatch
from fewstep.distill.engine.loop import Settings, train
from fewstep.distill.engine.roles import Network
from fewstep.distill.methods.finetune import Finetune
from fewstep.distill.methods.reflow import Reflow, noise_of
from fewstep.distill.mixtures import MixtureTask, ring

TASK = MixtureTask(ring(5, std=0.25), labelled=False)
VP = torch.linspace(0.999, 0.01, 50)
NOISE = TASK.noise(1000, seed=1)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    settings = PathSettings(batch=1000, shard=2000)
    return make_paths(TASK.teacher, TASK.paths(2000, steps=1), tmp_path_factory.mktemp("paths"), settings, show=False)


@pytest.fixture(scope="module")
def batch(paths):
    whole = paths.read(range(len(paths)))

    def some(step):
        rows = torch.randint(len(whole.states), (256,), generator=torch.Generator().manual_seed(step))
        return PathBatch(whole.states[rows], whole.times, None)

    return some


@pytest.fixture(scope="module")
def students(batch, tmp_path_factory):
    found = {}
    for name, method in (("reflow", Reflow(TASK.student())), ("unpaired", Finetune(TASK.student()))):
        settings = Settings(200, rate=1e-2, ema=0.98)
        done = train(method, batch, tmp_path_factory.mktemp(name), settings, show=False)
        found[name] = method.student.with_module(done.averages["student"])
    return found


def test_one_step_becomes_better_than_the_teachers_and_than_with_pairs_drawn_anew(students):
    one = {
        name: TASK.distance(euler(net, NOISE, flow_times(1)))
        for name, net in {**students, "teacher": TASK.teacher}.items()
    }
    assert one["reflow"] < 0.03, one
    assert one["reflow"] < one["unpaired"] / 10 < one["teacher"] / 10, one
    assert abs(TASK.distance(euler(students["reflow"], NOISE, flow_times(16)))) < 0.02  # the distribution is kept


def test_its_paths_are_straight(students):
    """One step and many lead from the same noise to nearly the same point; the teacher's ends are far apart."""

    def bend(net):
        ends = [euler(net, NOISE, flow_times(steps)) for steps in (1, 32)]
        return float((ends[0] - ends[1]).detach().norm(dim=1).mean())

    assert bend(students["reflow"]) < 0.4 < 1.5 < bend(TASK.teacher)


def test_it_asks_for_noise_minus_x0_of_the_pair_anywhere_between(paths):
    batch, times = paths.read(range(200)), []

    class Line(torch.nn.Module):
        def forward(self, x_t, t, cond):
            noise, x0 = batch.states[:, 0], batch.states[:, -1]
            torch.testing.assert_close(x_t, x0 + t[:, None] * (noise - x0))
            times.extend(t.tolist())
            return noise - x0

    (update,) = Reflow(Network(Line(), Schedule.flow())).updates(batch, torch.Generator().manual_seed(0))
    assert float(update.loss) < 1e-5
    assert min(times) < 0.05 < 0.95 < max(times)


@pytest.mark.parametrize(
    ("schedule", "start"),
    [(Schedule.vp(VP), 49.0), (Schedule.vp(VP, "v"), 30.0), (Schedule.edm(), 20.0), (Schedule.flow("x0"), 0.9)],
    ids=["vp-eps", "vp-v", "edm", "flow-x0"],
)
def test_other_schedules_have_the_pairs_of_their_paths(schedule, start):
    draw = torch.Generator().manual_seed(0)
    x0, first = torch.randn(64, 3, generator=draw), start_from(schedule, torch.randn(64, 3, generator=draw), start)
    batch = PathBatch(torch.stack([first, x0], dim=1), (start, schedule.end), None)
    noise = noise_of(schedule, batch)
    torch.testing.assert_close(schedule.add_noise(x0, noise, start), first)

    class Knowing(torch.nn.Module):
        def forward(self, x_t, t, cond):
            return schedule.from_x0(x0, x_t, t)

    (update,) = Reflow(Network(Knowing(), schedule)).updates(batch, torch.Generator().manual_seed(0))
    assert float(update.loss) < 1e-5
