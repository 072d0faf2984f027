"""MeanFlow: its equation holds for the one flow map that is known, and a student gets better in one step and two."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch

from fewstep.diffusion.schedule import Schedule
from fewstep.distill.engine.roles import Network, student_of
from fewstep.distill.jvp import difference, jvp
from fewstep.distill.methods.meanflow import MeanFlow, Pairs, adaptive, point, slope
from fewstep.distill.two_times import TwoTimes, average_velocity
from fewstep.errors import InputError
from fewstep.models.trace import trace
from tests.distill.methods.flow_map_toys import (
    FLOW,
    GAUSSIAN,
    STD,
    TASK,
    GaussianMap,
    distances,
    fitted,
    gaussian_batch,
    trained,
)
from tests.models.tiny import flux_true_cfg

ALL_DIFFERENT = Pairs(equal=0.0)


def loss(method, batch, seed=0):
    (update,) = method.updates(batch, torch.Generator().manual_seed(seed))
    return float(update.loss.detach())


def test_the_known_map_carries_the_noise_to_the_data():
    x = torch.randn(20000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one, none = torch.ones(len(x), dtype=torch.float64), torch.zeros(len(x), dtype=torch.float64)
    x0 = x - average_velocity(Network(GaussianMap(), FLOW), x, one, none, None)
    torch.testing.assert_close(x0, torch.tensor([1.5, -0.5]) + STD * x)


@pytest.mark.parametrize("derivative", [jvp, difference])
def test_the_loss_vanishes_at_the_flow_map_and_nowhere_near(derivative):
    batch = gaussian_batch()
    settings = {"teacher": GAUSSIAN, "pairs": ALL_DIFFERENT, "p": 0.0, "derivative": derivative}
    assert loss(MeanFlow(Network(GaussianMap(), FLOW), **settings), batch) < (1e-12 if derivative is jvp else 1e-7)
    assert loss(MeanFlow(Network(GaussianMap(gain=0.9), FLOW), **settings), batch) > 1e-3


def test_with_the_velocity_of_data_the_error_vanishes_on_average():
    """Its mean is 0 at every x_t, so also against x_t and t; that of a wrong map is not."""
    pairs = Pairs(equal=0.25)

    def moments(student):
        at = point(student, None, gaussian_batch(50_000), pairs, torch.Generator().manual_seed(0))
        with torch.no_grad():
            wanted = at.velocity - at.length * jvp(*slope(student, at))[1]
            off = average_velocity(student, at.x_t, at.t, at.r, None) - wanted
        return torch.stack([off.mean(0), (off * at.x_t).mean(0), (off * at.t[:, None]).mean(0)]).abs().max()

    assert float(moments(Network(GaussianMap(), FLOW))) < 0.02
    assert float(moments(Network(GaussianMap(gain=0.8), FLOW))) > 0.05


def test_where_r_is_t_it_is_flow_matching():
    student = Network(GaussianMap(), FLOW)
    at = point(student, GAUSSIAN, gaussian_batch(), Pairs(equal=1.0, whole=0.0), torch.Generator().manual_seed(0))
    assert torch.equal(at.r, at.t)
    torch.testing.assert_close(average_velocity(student, at.x_t, at.t, at.r, None), GAUSSIAN(at.x_t, at.t))


def test_pairs_are_in_order_and_as_often_equal_and_whole_as_told():
    r, t = Pairs(equal=0.3, whole=0.2).draw(Network(GaussianMap(), FLOW), 5000, torch.Generator().manual_seed(0))
    assert bool((r <= t).all())
    assert float((r == t).double().mean()) == pytest.approx(0.3, abs=0.02)
    assert float((r == 0).double().mean()) == pytest.approx(0.2, abs=0.02)
    assert float(t.mean()) == pytest.approx(2 / 3, abs=0.01)


def test_the_adaptive_weight_by_hand():
    off = torch.tensor([[2.0, 2.0], [0.0, 1.0]])  # mean squares 4 and 0.5
    torch.testing.assert_close(adaptive(off, p=0.0, c=1.0), torch.tensor(2.25))
    torch.testing.assert_close(adaptive(off, p=1.0, c=1.0), torch.tensor((4 / 5 + 0.5 / 1.5) / 2))
    u = off.clone().requires_grad_()
    adaptive(u, p=1.0, c=1.0).backward()
    torch.testing.assert_close(u.grad, off / torch.tensor([[5.0], [1.5]]) / 2)  # 2·off/2 dims, /2 samples, weight still


@pytest.mark.parametrize("source", ["teacher", "data"])
def test_a_student_gets_better_in_any_number_of_steps(source, tmp_path):
    student = fitted()
    before = distances(student)
    method = MeanFlow(student, TASK.teacher if source == "teacher" else None)
    after = distances(trained(method, tmp_path, steps=400))
    assert after[0] < 0.7 * before[0], (before, after)
    assert after[1] < 0.3 * before[1], (before, after)


def test_a_pipelines_student_learns_through_guidance_and_forward_mode():
    """The target of a traced Flux is that of a finite difference, and the loss reaches all that is new."""
    pipe, call = flux_true_cfg()
    teacher = trace(pipe, **{**call, "num_inference_steps": 3})
    student = student_of(teacher, TwoTimes(teacher.module))
    x0 = torch.randn(4, *teacher.noise.shape[1:], generator=torch.Generator().manual_seed(0))
    batch = replace(gaussian_batch(), states=torch.stack([x0, x0], dim=1), cond=teacher.cond)
    method = MeanFlow(student, teacher, ALL_DIFFERENT)
    at = point(student, teacher, batch, ALL_DIFFERENT, torch.Generator().manual_seed(0))
    torch.testing.assert_close(at.velocity, teacher(at.x_t, at.t, batch.cond))
    assert not torch.allclose(at.velocity, teacher.branch("cond", at.x_t, at.t, batch.cond), atol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        assert method.checked(batch).derivative is jvp
    (update,) = method.updates(batch, torch.Generator().manual_seed(0))
    update.loss.backward()
    assert all(float(p.grad.abs().max()) > 0 for p in student.module.heads.parameters())


def test_what_does_not_fit_is_refused():
    two = GaussianMap()
    with pytest.raises(InputError, match="told two times"):
        MeanFlow(TASK.student())
    with pytest.raises(InputError, match="'schedule' of a flow map"):
        MeanFlow(Network(two, Schedule.edm()))
    for field, value in (("p", -1.0), ("c", 0.0)):
        with pytest.raises(InputError, match=f"'{field}' of MeanFlow"):
            MeanFlow(Network(two, FLOW), **{field: value})
    with pytest.raises(InputError, match="'equal' of the pairs"):
        Pairs(equal=1.5)
    with pytest.raises(InputError, match=r"'whole' of the pairs.*equal share of 0.8"):
        Pairs(equal=0.8, whole=0.3)
