"""Consistency models: students in one and two steps against exact samples, and the loss in cases done by hand."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from torch import nn

from fewstep.diffusion.samplers import dpmpp_2m, euler, flow_times, renoise
from fewstep.diffusion.schedule import Schedule
from fewstep.distill.data.samples import PathBatch
from fewstep.distill.engine.loop import Settings, train
from fewstep.distill.engine.roles import Network, student_of
from fewstep.distill.methods.consistency import Consistency, Shrinking, flow_time
from fewstep.distill.methods.scores import Levels
from fewstep.errors import InputError
from tests.distill.toys import CLASSES, MIXTURE, ExactConsistency, data, fitted, net, sliced_distance, teacher

SCHEDULES = (Schedule.flow(), Schedule.vp(torch.linspace(0.999, 0.01, 200), "v"), Schedule.edm("x0"))
SAMPLES = 4000


@pytest.fixture(scope="module")
def unseen():
    """Noise, exact samples, and where the exact flow takes the noise."""
    noise = torch.randn(SAMPLES, 2, generator=torch.Generator().manual_seed(99))
    cond = torch.zeros(SAMPLES, dtype=torch.long)
    samples = MIXTURE.sample(SAMPLES, torch.Generator().manual_seed(98))
    return noise, cond, samples, dpmpp_2m(teacher(0.0), noise, flow_times(128), cond)


def one_and_two_steps(student, noise, cond):
    generator = torch.Generator().manual_seed(7)
    return euler(student, noise, flow_times(1), cond), renoise(student, noise, flow_times(2), cond, generator=generator)


@pytest.mark.parametrize(
    ("taught", "parts"), [(True, (0.4, 0.65)), (False, (0.4, 0.8))], ids=["distillation", "training"]
)
def test_a_student_comes_close_to_exact_samples_in_one_and_two_steps(taught, parts, unseen, tmp_path):
    noise, cond, samples, ends = unseen
    before, student = fitted(), student_of(fitted())
    method = Consistency(student, teacher(0.0) if taught else None, huber=0.0)
    settings = Settings(150, rate=1e-2, warmup=20, ema=0.98)
    done = train(method, data, tmp_path, settings, show=False)
    after = student.with_module(done.averages["student"])
    for ours, theirs, part in zip(
        one_and_two_steps(after, noise, cond), one_and_two_steps(before, noise, cond), parts, strict=True
    ):
        assert sliced_distance(ours, samples) < part * sliced_distance(theirs, samples)
    off = (euler(after, noise, flow_times(1), cond) - ends).norm(dim=1).mean()
    assert off < 0.35 * (euler(before, noise, flow_times(1), cond) - ends).norm(dim=1).mean()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{s.kind}-{s.prediction}")
def test_the_exact_consistency_function_has_no_loss_but_that_of_the_teachers_step(schedule):
    """One Euler step over h is off by O(h²), so the loss is h⁴/h: eight times less for half of h, and ever less."""
    cond = torch.arange(60) % CLASSES
    batch = PathBatch(MIXTURE.means[cond][:, None] + 0.1, (0.0,), cond)
    student = Network(ExactConsistency(schedule), schedule)
    exact = Network(Denoiser(schedule), schedule)
    levels = Levels(low=0.3, high=0.8)

    def loss(h):
        method = Consistency(student, exact, lambda t, stage: t - h, levels=levels, huber=0.0)
        return float(next(method.updates(batch, torch.Generator().manual_seed(1))).loss)

    coarse, fine, finer = loss(0.04), loss(0.02), loss(0.01)
    assert coarse / fine == pytest.approx(8, rel=0.25)
    assert fine / finer == pytest.approx(8, rel=0.25)
    wrong = Consistency(exact, exact, lambda t, stage: t - 0.01, levels=levels, huber=0.0)
    assert float(next(wrong.updates(batch, torch.Generator().manual_seed(1))).loss) > 1000 * finer


class Denoiser(nn.Module):
    """The exact denoiser of the class's Gaussian, in any schedule."""

    def __init__(self, schedule):
        super().__init__()
        self.exact = MIXTURE.denoiser(schedule)

    def forward(self, x_t, t, cond):
        return self.exact(x_t, t, cond)


class Scaling(nn.Module):
    """f(x_t, t) = w·x_t, for a schedule whose prediction is x0; keeps what it was asked."""

    def __init__(self, w=1.0):
        super().__init__()
        self.w, self.asked = nn.Parameter(torch.tensor(w)), []

    def forward(self, x_t, t, cond):
        self.asked.append((x_t, t))
        return self.w * x_t


def test_training_compares_two_points_of_one_line_and_holds_the_earlier_still():
    batch, module = data(0, 32), Scaling(0.7)
    method = Consistency(Network(module, Schedule.flow("x0")), None, Shrinking(16.0), 1, huber=0.0)
    (update,) = method.updates(batch, torch.Generator().manual_seed(0))
    update.loss.backward()
    (x_r, r), (x_t, t) = module.asked
    u = t.double()
    torch.testing.assert_close(r.double(), u * (1 - (1 + 8 * (-u).sigmoid()) / 16))
    velocity = (x_t - x_r) / (t - r)[:, None]
    torch.testing.assert_close(x_t - t[:, None] * velocity, batch.states[:, -1], rtol=1e-3, atol=1e-3)
    off = 0.7 * (x_t - x_r)
    torch.testing.assert_close(update.loss, (off.square().mean(dim=1) / (t - r)).mean())
    slope = ((2 * off * x_t).mean(dim=1) / (t - r)).mean()  # with a gradient in both it would be that of off², less
    torch.testing.assert_close(module.w.grad, slope)


def test_the_first_stage_of_a_small_q_is_denoising():
    """r is 0, where the target is the data itself, whatever the network says there."""

    class Lost(Scaling):
        def forward(self, x_t, t, cond):
            return torch.where(t[:, None] > 0, super().forward(x_t, t, cond), torch.nan)

    batch, module = data(0, 32), Lost()
    (update,) = Consistency(Network(module, Schedule.flow("x0")), huber=0.0).updates(batch, torch.Generator())
    x_t, t = module.asked[-1]
    expected = ((x_t - batch.states[:, -1]).square().mean(dim=1) / t).mean()
    torch.testing.assert_close(update.loss, expected)


def test_distillation_takes_one_step_of_the_teacher():
    batch, module = data(0, 32), Scaling()
    method = Consistency(Network(module, Schedule.flow("x0")), teacher(), Shrinking(16.0), 1)
    list(method.updates(batch, torch.Generator().manual_seed(0)))
    (x_r, r), (x_t, t) = module.asked
    torch.testing.assert_close(x_r, x_t - (t - r)[:, None] * teacher()(x_t, t, batch.cond), rtol=1e-4, atol=1e-4)


def test_both_points_drop_out_the_same_units():
    class Dropping(nn.Module):
        def forward(self, x_t, t, cond):
            return nn.functional.dropout(torch.ones_like(x_t), 0.5, training=True)

    method = Consistency(Network(Dropping(), Schedule.flow("x0")), None, Shrinking(64.0), 1)
    states = torch.get_rng_state()
    (update,) = method.updates(data(0), torch.Generator().manual_seed(0))
    assert float(update.loss) == 0
    assert not torch.equal(torch.get_rng_state(), states)  # the next step drops out others


def test_r_comes_nearer_stage_by_stage():
    shrinking, t = Shrinking(), torch.linspace(0.01, 1, 50, dtype=torch.float64)
    gaps = torch.stack([t - shrinking(t, stage) for stage in range(8)])
    assert bool((gaps > 0).all())
    assert torch.equal(gaps[0], t)
    assert bool((gaps.diff(dim=0) <= 0).all())
    assert float(gaps[3, -1]) == pytest.approx((1 + 8 / (1 + 2.718281828459045)) / 16)
    method = Consistency(fitted(), stages=4)
    assert [method.at(step, 9).stage for step in range(9)] == [0, 0, 0, 1, 1, 2, 2, 3, 3]
    assert method.stage == 0


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.kind)
def test_flow_times(schedule):
    t = {"flow": [0.0, 0.3, 0.999], "vp": [-1.0, 50.0, 199.0], "edm": [0.0, 0.5, 80.0]}[schedule.kind]
    u = flow_time(schedule, torch.tensor(t, dtype=torch.float64))
    torch.testing.assert_close(schedule.time_of(u / (1 - u)), torch.tensor(t, dtype=torch.float64))
    assert float(u[0]) == 0


def test_a_resumed_run_goes_on_in_its_stage(tmp_path):
    def stop(step, averages):
        if step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    def go(folder, **kwargs):
        method = Consistency(Network(net(), Schedule.flow()), teacher(), stages=4)
        train(method, lambda step: data(step, 16), folder, Settings(8), show=False, **kwargs)
        lines = [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]
        return [line["loss"]["student"] for line in lines]

    assert len(go(tmp_path / "parts", watch=stop)) == 5
    assert go(tmp_path / "parts") == go(tmp_path / "whole")


@pytest.mark.parametrize(("field", "value"), [("stages", 0), ("huber", -1.0)])
def test_bad_values_are_one_sentence(field, value):
    with pytest.raises(InputError, match=f"^The '{field}' of a consistency model must be"):
        replace(Consistency(fitted()), **{field: value})


@pytest.mark.parametrize("values", [{"q": 1.0}, {"k": -1.0}])
def test_a_mapping_that_does_not_shrink_is_refused(values):
    with pytest.raises(InputError, match="of the shrinking of t − r must be"):
        Shrinking(**values)
