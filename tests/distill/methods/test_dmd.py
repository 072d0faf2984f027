"""DMD: the loss is the sum that it says, and the student keeps to the paths while it sharpens."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from fewstep.diffusion.samplers import euler, flow_times
from fewstep.distill.data.samples import PathBatch
from fewstep.distill.engine.loop import train
from fewstep.distill.engine.roles import Network
from fewstep.distill.methods.dmd import DMD
from fewstep.distill.methods.dmd2 import DMD2
from fewstep.distill.methods.scores import Critic
from fewstep.errors import InputError
from tests.distill.methods.matching_toys import (
    FLOW,
    ONE,
    SETTINGS,
    Shifted,
    batch,
    exact,
    fitted,
    gaussian,
    generator,
    one_step,
    run_updates,
)


def dmd2(student=None, critic_steps=1):
    return DMD2(student or fitted(), exact(), Critic(fitted()), ONE, critic_steps)


@cache
def paths(seed=0, size=256):
    """Noise, and where the exact teacher takes it."""
    noise = torch.randn(size, 2, generator=generator(seed))
    return PathBatch(torch.stack([noise, euler(exact(), noise, flow_times(40))], dim=1), (1.0, 0.0), None)


def test_one_iteration_is_the_critics_updates_and_one_of_the_student():
    assert run_updates(DMD(dmd2(critic_steps=2))) == ["critic", "critic", "student"]


def test_the_students_loss_is_the_sum_of_both():
    matching = dmd2()
    alone = float(list(matching.updates(batch(), generator()))[-1].loss.detach())
    sums = [float(list(DMD(matching, w).updates(batch(), generator()))[-1].loss.detach()) for w in (0.25, 0.5)]
    assert sums[1] - sums[0] == pytest.approx(sums[0] - alone, rel=1e-5)
    assert sums[0] > alone


def test_regression_draws_each_sample_to_the_end_of_its_own_path():
    """For x0 = mean + s·noise the gradient in the mean is the mean of what is missed, whatever the noise is."""
    student = Network(Shifted((1.0, -0.5), 0.4), FLOW)
    some = batch()
    loss = DMD(dmd2(student)).regression(some, generator())
    loss.backward()
    missed = torch.tensor([1.0, -0.5]) + 0.4 * some.states[:, 0] - some.states[:, -1]
    torch.testing.assert_close(loss, missed.square().mean())
    torch.testing.assert_close(student.module.mean.grad, missed.mean(dim=0))


def test_states_between_lead_to_the_end_too():
    """A student that knows the one end there is misses nothing from any state of a path to it."""
    end = torch.tensor([[1.5, 0.0]])
    noise = torch.randn(64, 2, generator=generator())
    states = torch.stack([noise, 0.2 * end + 0.8 * noise, end.expand_as(noise)], dim=1)
    student = exact(gaussian((1.5, 0.0), 1e-4))
    assert float(DMD(dmd2(student)).regression(PathBatch(states, (1.0, 0.8, 0.0), None), generator())) < 1e-4
    assert float(DMD(dmd2(exact())).regression(PathBatch(states, (1.0, 0.8, 0.0), None), generator())) > 0.1


def test_one_step_beats_the_teachers_by_far_and_each_noise_keeps_its_sample(tmp_path):
    """Matching alone may give any noise any sample of the mixture."""
    new, missed = paths(seed=100, size=1000), {}
    for weight in (1.0, None):
        student = fitted()
        matching = dmd2(student, critic_steps=2)
        method = matching if weight is None else DMD(matching, weight)
        done = train(method, lambda step: paths(seed=step % 8), tmp_path / str(weight), SETTINGS, show=False)
        average = student.with_module(done.averages["student"])
        missed[weight] = float((euler(average, new.states[:, 0], [1.0, 0.0]) - new.states[:, -1]).square().mean())
        ours, teachers = one_step(average), one_step(exact())
        assert ours < teachers / 8, (weight, ours, teachers)
    assert missed[1.0] < missed[None] / 2, missed


def test_it_is_no_dmd_without_regression():
    with pytest.raises(InputError, match="'weight' of DMD must be above 0"):
        DMD(dmd2(), weight=0.0)
