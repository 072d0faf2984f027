"""LADD: heads over the frozen teacher judge, and a student of one step learns from them alone."""

from __future__ import annotations

import pytest

from fewstep.distill.engine.loop import Settings
from fewstep.distill.methods.backward import Rollout
from fewstep.distill.methods.ladd import LADD, paper_levels
from fewstep.distill.methods.scores import flow_time
from fewstep.errors import InputError
from tests.distill.methods.matching_toys import (
    FLOW,
    exact,
    feature_gan,
    fitted,
    generator,
    one_step,
    own_gan,
    run_updates,
    trained,
)

DATA = Rollout((1.0, 0.0), simulated=False)


@pytest.mark.parametrize("kind", ["softplus", "hinge"])
@pytest.mark.parametrize("penalty", [0.0, 0.1])
def test_each_loss_trains_its_own_module_only(kind, penalty):
    gan = feature_gan(fitted(), weight=1.0, kind=kind, r1=penalty)
    method = LADD(fitted(), gan, DATA, discriminator_steps=2)
    assert run_updates(method) == ["discriminator", "discriminator", "student"]
    assert list(method.frozen) == ["teacher"]


def test_the_papers_levels_are_noisy():
    logit = flow_time(FLOW, paper_levels().draw(FLOW, 20000, generator())).logit()
    assert float(logit.median()) == pytest.approx(1.0, abs=0.06)


def test_one_step_beats_the_teachers_one_step_by_far(tmp_path):
    student = fitted()
    method = LADD(student, feature_gan(fitted(), weight=1.0, r1=0.1), DATA, discriminator_steps=2)
    ours = one_step(trained(method, student, tmp_path, Settings(120, rate=2e-3, warmup=10, ema=0.95)))
    teachers = one_step(exact())
    assert ours < teachers / 4, (ours, teachers)


def test_a_discriminator_of_its_own_needs_no_teacher():
    method = LADD(fitted(), own_gan(weight=1.0), DATA)
    assert method.frozen == {}
    assert run_updates(method) == ["discriminator", "student"]


def test_bad_values_are_one_sentence():
    with pytest.raises(InputError, match=r"^The 'discriminator_steps' of LADD must be at least 1"):
        LADD(fitted(), own_gan(), DATA, discriminator_steps=0)
