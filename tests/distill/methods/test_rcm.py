"""rCM: both losses on one student, after a warm-up of the first, and samples at random falling times."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fewstep.distill.engine.roles import Network
from fewstep.distill.methods.dmd2 import DMD2
from fewstep.distill.methods.rcm import RCM, RandomRollout
from fewstep.distill.methods.scm import SCM
from fewstep.distill.methods.scores import Critic, flow_time
from fewstep.errors import InputError
from tests.distill.methods.matching_toys import (
    FLOW,
    SCHEDULES,
    batch,
    exact,
    fitted,
    generator,
    one_step,
    run_updates,
    trained,
)

ROLLOUT = RandomRollout(start=1.0)


def rcm(student, critic_steps=4, **values):
    return RCM(SCM(student, exact()), DMD2(student, exact(), Critic(fitted()), ROLLOUT, critic_steps), **values)


class Recorder:
    """A denoiser that keeps the times that it was asked at."""

    def __init__(self, inner):
        self.inner, self.schedule, self.module, self.times = inner, inner.schedule, inner.module, []

    def __call__(self, x_t, t, cond=None):
        self.times.append(t)
        return self.inner(x_t, t, cond)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{s.kind}-{s.prediction}")
def test_times_fall_from_noise_and_the_steps_are_drawn_evenly(schedule):
    start, some = float(schedule.time_of(50.0)), batch(8)
    counts = [0] * 4
    for seed in range(60):
        student = Recorder(exact(schedule=schedule))
        replace(ROLLOUT, start=start).sample(student, some, generator(seed))
        u = flow_time(schedule, torch.stack(student.times))
        assert bool((u[0] == u[0, 0]).all())
        assert bool((u.diff(dim=0) <= 0).all())
        counts[len(u) - 1] += 1
    assert all(6 < count < 25 for count in counts)


def test_only_the_last_step_has_a_gradient_and_no_data_is_used():
    student = fitted()
    for seed in range(8):
        x0 = ROLLOUT.sample(student, batch(8, seed=1), generator(seed))
        assert x0.requires_grad
        x_t, t = ROLLOUT.state(student, batch(8, seed=2), generator(seed))
        assert not x_t.requires_grad
        torch.testing.assert_close(x0, FLOW.to_x0(student(x_t, t), x_t, t))


def test_the_critic_waits_for_the_warm_up():
    method = rcm(fitted(), critic_steps=2)
    assert run_updates(method.at(0, 100)) == ["student"]
    assert run_updates(method.at(50, 100)) == ["critic", "critic", "student"]


def test_the_loss_is_made_of_both():
    method = rcm(fitted(), critic_steps=1, scm_weight=10.0, dmd_weight=0.5)
    *_, update = method.updates(batch(16), generator())
    draw = generator()
    list(method.dmd2.critic_updates(batch(16), draw))
    (consistent,) = method.scm.updates(batch(16), draw)
    matching = 2 * method.dmd2.student_loss(batch(16), draw)  # the mean square of the gradient, without its half
    torch.testing.assert_close(update.loss, 10 * consistent.loss + 0.5 * matching)


def test_one_step_beats_the_teachers_one_step_by_far(tmp_path):
    student = fitted()
    ours, teachers = one_step(trained(rcm(student), student, tmp_path)), one_step(exact())
    assert ours < teachers / 8, (ours, teachers)


def test_values_that_do_not_fit_are_one_sentence():
    student = fitted()
    with pytest.raises(InputError, match=r"^The 'scm_weight' of rCM must be 0 or above"):
        rcm(student, scm_weight=-1.0)
    with pytest.raises(InputError, match="rCM needs an sCM with a teacher, and the same student"):
        RCM(SCM(student), rcm(student).dmd2)
    with pytest.raises(InputError, match="rCM needs an sCM with a teacher, and the same student"):
        RCM(SCM(Network(fitted().module, FLOW), exact()), rcm(student).dmd2)
    with pytest.raises(InputError, match=r"^The 'most' of a rollout must be at least 1"):
        RandomRollout(1.0, most=0)
