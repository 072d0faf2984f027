"""DMD2 against closed forms: the gradient is the difference of scores, and a student of one step learns the mixture."""

from __future__ import annotations

import pytest
import torch

from fewstep.diffusion.samplers import euler, flow_times, renoise
from fewstep.distill.data.samples import PathBatch
from fewstep.distill.engine.lora import Backbone
from fewstep.distill.engine.roles import Network, student_of
from fewstep.distill.methods.adversary import Gan
from fewstep.distill.methods.backward import Rollout, guess, noised
from fewstep.distill.methods.discriminator import FeatureDiscriminator
from fewstep.distill.methods.dmd2 import DMD2, descend, kl_gradient
from fewstep.distill.methods.scores import Critic, Levels, spread
from fewstep.distill.mixtures import energy_distance
from fewstep.errors import InputError
from fewstep.models.trace import trace
from tests.distill.methods.matching_toys import (
    FLOW,
    MIXTURE,
    ONE,
    SCHEDULES,
    TASK,
    Shifted,
    batch,
    exact,
    feature_gan,
    fitted,
    gaussian,
    generator,
    has_gradient,
    one_step,
    own_gan,
    run_updates,
    trained,
    unlike,
)
from tests.distill.pipes import CALL, pipeline


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{s.kind}-{s.prediction}")
def test_the_gradient_is_the_difference_of_scores(schedule):
    """But for the factor sigma²/alpha, and for the scale that is divided by."""
    own, t = gaussian((0.3, -0.5), 0.6), float(schedule.time_of(0.7))
    x = own.sample(64, generator())
    x_t = noised(schedule, x, t, generator(1))

    def score(mixture):
        at = x_t.clone().requires_grad_()
        return torch.autograd.grad(mixture.noised(schedule, t).log_prob(at).sum(), at)[0]

    real, fake = (guess(exact(mixture, schedule), x_t, t, None) for mixture in (MIXTURE, own))
    factor = float(schedule.sigma(t) ** 2 / schedule.alpha(t))
    wanted = factor * (score(own) - score(MIXTURE))
    torch.testing.assert_close(kl_gradient(x, real, fake) * spread(x, real), wanted, rtol=1e-3, atol=1e-3)
    assert wanted.abs().mean() > 0.1


def test_descending_gives_this_gradient():
    x, gradient = torch.randn(4, 3, 2, requires_grad=True), torch.randn(4, 3, 2)
    descend(x, gradient).backward()
    torch.testing.assert_close(x.grad, gradient / 24)


def test_the_students_mean_is_drawn_straight_to_the_teachers():
    """Two Gaussians of one deviation s: fake − real is (1 − k·alpha)·(their distance), k = alpha·s²/variance of x_t."""
    start, end, s = (1.0, -0.5), (-0.5, 0.25), 0.4
    student = Network(Shifted(start, s), FLOW)
    method = DMD2(student, exact(gaussian(end, s)), Critic(exact(gaussian(start, s))), ONE)
    method.student_loss(batch(), generator()).backward()
    found = student.module.mean.grad

    draw = generator()  # the same draws again
    x = ONE.sample(student, batch(), draw).detach()
    t = Levels().draw(FLOW, len(x), draw)
    x_t = noised(FLOW, x, t, draw)
    alpha, sigma = (c.float()[:, None] for c in (FLOW.alpha(t), FLOW.sigma(t)))
    k = alpha * s**2 / (alpha**2 * s**2 + sigma**2)
    apart = torch.tensor(start) - torch.tensor(end)
    wanted = (1 - k * alpha) * apart / spread(x, guess(exact(gaussian(end, s)), x_t, t, None))
    torch.testing.assert_close(found, wanted.sum(dim=0) / x.numel(), rtol=1e-4, atol=1e-6)
    assert float(torch.cosine_similarity(found, apart, dim=0)) == pytest.approx(1, abs=1e-5)


def test_the_gradient_vanishes_where_the_student_is_the_teacher():
    own = gaussian((1.0, -0.5), 0.4)
    student = Network(Shifted((1.0, -0.5), 0.4), FLOW)
    loss = DMD2(student, exact(own), Critic(exact(own)), ONE).student_loss(batch(), generator())
    loss.backward()
    assert float(student.module.mean.grad.abs().max()) < 1e-6


def test_every_iteration_is_one_update_of_the_student_after_those_of_the_critic():
    """And each loss trains its own module only."""
    method = DMD2(fitted(), fitted(), Critic(unlike()), ONE, critic_steps=3)
    assert run_updates(method) == ["critic"] * 3 + ["student"]
    assert list(method.modules) == ["student", "critic"]
    method = DMD2(fitted(), fitted(), Critic(unlike()), ONE, critic_steps=2, gan=own_gan())
    assert run_updates(method) == ["critic", "discriminator"] * 2 + ["student"]
    for weight in (0.0, 0.1):
        critic = unlike()
        gan = feature_gan(critic, critic_weight=weight)
        method = DMD2(fitted(), fitted(), Critic(critic), ONE, critic_steps=1, gan=gan)
        assert run_updates(method) == ["critic", "discriminator", "student"]


def test_the_critic_learns_for_the_discriminator_where_it_is_asked_to():
    losses = {}
    for weight in (0.0, 0.1):
        critic = fitted()
        method = DMD2(fitted(), exact(), Critic(critic), ONE, 1, gan=feature_gan(critic, critic_weight=weight))
        losses[weight] = float(next(iter(method.updates(batch(16), generator()))).loss.detach())
    assert losses[0.1] - losses[0.0] == pytest.approx(0.1 * 2 * 0.693, rel=0.3)  # of heads that know nothing yet


def test_no_data_is_used_without_a_discriminator():
    def losses(some, gan):
        method = DMD2(fitted(), exact(), Critic(fitted()), ONE, critic_steps=1, gan=gan)
        return [float(update.loss.detach()) for update in method.updates(some, generator())]

    assert losses(batch(16, seed=1), None) == losses(batch(16, seed=2), None)
    a, b = losses(batch(16, seed=1), own_gan()), losses(batch(16, seed=2), own_gan())
    assert (a[0], a[2]) == (b[0], b[2])
    assert a[1] != b[1]


@pytest.mark.parametrize("gan", ["none", "critic", "own"])
def test_one_step_beats_the_teachers_one_step_by_far(tmp_path, gan):
    student, critic = fitted(), fitted()
    adversary = {"none": None, "critic": feature_gan(critic, critic_weight=1e-2), "own": own_gan()}[gan]
    method = DMD2(student, exact(), Critic(critic), ONE, critic_steps=3, gan=adversary)
    ours, teachers = one_step(trained(method, student, tmp_path)), one_step(exact())
    assert ours < teachers / 8, (ours, teachers)


@pytest.mark.parametrize("sampler", ["renoise", "euler"])
def test_two_steps_beat_the_teachers_two(tmp_path, sampler):
    student, times = fitted(), flow_times(2)
    method = DMD2(student, exact(), Critic(fitted()), Rollout(times, sampler), critic_steps=3)
    average = trained(method, student, tmp_path)

    def distance(denoiser):
        noise = TASK.noise(1000)
        way = {"generator": generator()} if sampler == "renoise" else {}
        return energy_distance((renoise if way else euler)(denoiser, noise, times, **way), MIXTURE)

    assert distance(average) < distance(exact()) / 2, (distance(average), distance(exact()))


@pytest.mark.parametrize("shared", [False, True], ids=["three", "one"])
def test_a_traced_pipeline_is_trained_with_guidance_in_three_networks_or_one(shared):
    traced = trace(pipeline(), **{**CALL, "num_inference_steps": 4, "prompt": ["a red ring", "a blue cross"]})
    backbone = Backbone(traced.module, rank=2) if shared else None
    student, critic = (
        student_of(traced) if backbone is None else traced.with_module(backbone.adapter()) for _ in range(2)
    )
    example = traced.noise, traced.times[0], traced.cond
    gan = Gan(FeatureDiscriminator.over(critic, *example, width=8), critic_weight=0.1)
    method = DMD2(student, traced, Critic(critic), Rollout(flow_times(2, 1.5), "euler"), critic_steps=1, gan=gan)
    some = PathBatch(torch.stack([traced.noise, traced.noise / 2], dim=1), (1.0, 0.0), traced.cond)
    for seed in range(2):
        for update in method.updates(some, generator(seed)):
            update.loss.backward()
            before = [p.detach().clone() for p in update.module.parameters() if p.grad is not None]
            torch.optim.AdamW(update.module.parameters(), lr=1e-3).step()
            after = [p for p in update.module.parameters() if p.grad is not None]
            assert any(not torch.equal(a, b) for a, b in zip(after, before, strict=True))
            for module in method.modules.values():
                module.zero_grad()
    assert not has_gradient(traced.module)


def test_its_teacher_is_guided_where_it_is_told():
    """The student's gradient is that of a teacher guided between these noise levels."""
    traced = trace(pipeline(), **{**CALL, "num_inference_steps": 4, "prompt": ["a red ring", "a blue cross"]})
    some = PathBatch(torch.stack([traced.noise, traced.noise / 2], dim=1), (1.0, 0.0), traced.cond)

    def loss(**options):
        critic = Critic(student_of(traced))
        method = DMD2(student_of(traced), traced, critic, ONE, levels=Levels(0.4, 0.5), **options).checked(some)
        return float(method.student_loss(some, generator()).detach())

    assert loss(guided=(0.3, 0.6)) == loss() != loss(guided=(0.6, 0.9))


def test_values_that_do_not_fit_are_one_sentence():
    with pytest.raises(InputError, match="'guided' of a teacher must be two rising numbers"):
        DMD2(fitted(), exact(), Critic(fitted()), ONE, guided=(0.9, 0.5))
    with pytest.raises(InputError, match=r"^The 'critic_steps' of DMD2 must be at least 1"):
        DMD2(fitted(), exact(), Critic(fitted()), ONE, critic_steps=0)
    with pytest.raises(InputError, match="'critic_weight' needs a discriminator on the features of the critic"):
        DMD2(fitted(), exact(), Critic(fitted()), ONE, gan=feature_gan(fitted(), critic_weight=0.1))
