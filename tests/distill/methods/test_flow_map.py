"""The flow map: its loss vanishes where the map is known, as the teacher's step gets exact; students get better."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fewstep.diffusion.samplers import euler, flow_times
from fewstep.diffusion.schedule import Schedule
from fewstep.distill.engine.roles import Network
from fewstep.distill.methods.flow_map import FlowMap
from fewstep.distill.methods.meanflow import MeanFlow, Pairs, point
from fewstep.distill.two_times import average_velocity
from fewstep.errors import InputError
from tests.distill.methods.flow_map_toys import (
    FLOW,
    GAUSSIAN,
    NOISE,
    TASK,
    GaussianMap,
    distances,
    fitted,
    gaussian_batch,
    trained,
)

ALL_DIFFERENT = Pairs(equal=0.0)


def of_gaussian(gain=1.0, part=0.25):
    return FlowMap(Network(GaussianMap(gain), FLOW), GAUSSIAN, ALL_DIFFERENT, part)


def loss(method):
    (update,) = method.updates(gaussian_batch(), torch.Generator().manual_seed(0))
    return float(update.loss.detach())


def test_the_loss_vanishes_at_the_known_map_with_the_sixth_power_of_the_step():
    """u is off by ε times the error of Heun's velocity, of order ε², and its square is the loss."""
    losses = [loss(of_gaussian(part=part)) for part in (0.2, 0.1, 0.05)]
    assert losses[0] < 1e-4
    assert losses[2] < 1e-8
    assert 45 < losses[1] / losses[2] < 75  # 2⁶ = 64
    assert loss(of_gaussian(gain=0.9, part=0.05)) > 1e3 * losses[2]


def test_as_the_step_shrinks_it_asks_what_meanflow_asks():
    """(u − wanted)/ε goes to u − (v − (t − r)·du/dt), also for a student that is not yet the map."""
    student, batch = Network(GaussianMap(gain=0.7), FLOW), gaussian_batch()
    at = point(student, GAUSSIAN, batch, ALL_DIFFERENT, torch.Generator().manual_seed(0))
    with torch.no_grad():
        u = average_velocity(student, at.x_t, at.t, at.r, None)
    apart = (u - FlowMap(student, GAUSSIAN, part=1e-4).wanted(at)) / 1e-4
    mean_flow = MeanFlow(student, GAUSSIAN, ALL_DIFFERENT, p=0.0)
    (update,) = mean_flow.updates(batch, torch.Generator().manual_seed(0))
    assert float(apart.square().mean()) == pytest.approx(float(update.loss.detach()), rel=1e-2)
    assert float(update.loss.detach()) > 0.01


def test_a_whole_step_is_the_teachers_own():
    at = point(Network(GaussianMap(), FLOW), GAUSSIAN, gaussian_batch(), ALL_DIFFERENT, torch.Generator())
    end = at.x_t - at.length * at.velocity
    heun = (at.velocity + GAUSSIAN(end, at.r)) / 2
    torch.testing.assert_close(of_gaussian(part=1.0).wanted(at), heun)


def test_one_checkpoint_gets_better_in_one_step_two_and_four(tmp_path):
    student = fitted()
    before = distances(student)
    after = distances(trained(FlowMap(student, TASK.teacher), tmp_path))
    assert after[0] < 0.15 * before[0], (before, after)
    assert after[1] < 0.1 * before[1], (before, after)
    assert after[2] < 0.5 * before[2], (before, after)
    few = TASK.distance(euler(TASK.teacher, NOISE, flow_times(2)))
    assert after[0] < few  # one step of it is better than two of the teacher


def test_the_huber_distance_is_used():
    plain = of_gaussian(gain=0.5)
    assert loss(replace(plain, huber=1e-3)) == pytest.approx(loss(plain) ** 0.5, rel=0.5)


def test_what_does_not_fit_is_refused():
    two = Network(GaussianMap(), FLOW)
    with pytest.raises(InputError, match="told two times"):
        FlowMap(TASK.student(), TASK.teacher)
    with pytest.raises(InputError, match="'schedule' of a flow map"):
        FlowMap(Network(two.module, Schedule.flow("x0")), TASK.teacher)
    for field, value in (("part", 0.0), ("part", 1.5), ("huber", -1.0)):
        with pytest.raises(InputError, match=f"'{field}' of a flow map"):
            FlowMap(two, GAUSSIAN, **{field: value})
