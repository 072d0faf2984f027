"""SiD: its two losses are equal in the mean and right where mathematics says so, and a student of one step learns."""

from __future__ import annotations

import pytest
import torch

from fewstep.distill.engine.roles import Network
from fewstep.distill.methods.backward import guess, noised
from fewstep.distill.methods.scores import Critic, spread
from fewstep.distill.methods.sid import SiD, explicit, fused, projected
from fewstep.errors import InputError
from tests.distill.methods.matching_toys import (
    FLOW,
    MIXTURE,
    ONE,
    Shifted,
    batch,
    exact,
    fitted,
    gaussian,
    generator,
    one_step,
    run_updates,
    trained,
    unlike,
)


def seen(x, t, *mixtures):
    """What their exact denoisers see in x noised to t."""
    x_t = noised(FLOW, x, t, generator(1))
    return tuple(guess(exact(mixture), x_t, t, None) for mixture in mixtures)


def test_both_losses_are_the_fisher_divergence_where_the_critic_is_exact():
    own = gaussian((0.3, -0.5), 0.6)
    x = own.sample(200_000, generator())
    real, fake = seen(x, 0.6, MIXTURE, own)
    wanted = float(explicit(real, fake).mean())
    assert float(projected(x, real, fake).mean()) == pytest.approx(wanted, rel=0.02)
    (wrong,) = seen(x, 0.6, gaussian((0.0, 0.0), 0.6))
    assert abs(float(projected(x, real, wrong).mean()) / float(explicit(real, wrong).mean()) - 1) > 0.1


def test_their_gradients():
    """Two Gaussians of one deviation, apart by d: the divergence is c²·d², c = 1 − k·alpha, and its gradient 2·c²·d.

    L1 sees nothing of it, as both denoisers move alike with x_t; L2 sees half.
    """
    start, end, s, t = (1.0, -0.5), (-0.5, 0.25), 0.4, 0.6
    student = Shifted(start, s)
    x = student.mean + s * torch.randn(64, 2, generator=generator())
    real, fake = seen(x, t, gaussian(end, s), gaussian(start, s))
    (of_l1,) = torch.autograd.grad(explicit(real, fake).mean(), student.mean, retain_graph=True)
    (of_l2,) = torch.autograd.grad(projected(x, real, fake).mean(), student.mean)
    alpha, k = 1 - t, (1 - t) * s**2 / ((1 - t) ** 2 * s**2 + t**2)
    apart = torch.tensor(start) - torch.tensor(end)
    divergence_slope = 2 * (1 - k * alpha) ** 2 * apart / 2  # / 2: a mean over two coordinates
    torch.testing.assert_close(of_l1, torch.zeros(2), rtol=0, atol=1e-6)
    torch.testing.assert_close(of_l2, divergence_slope / 2, rtol=1e-4, atol=1e-6)


def test_the_loss_is_made_of_both():
    x, real, fake = (torch.randn(8, 3, 2, generator=generator(seed)) for seed in range(3))
    for alpha in (0.0, 1.0, 1.2):
        each = projected(x, real, fake) - alpha * explicit(real, fake)
        wanted = (each / (x - real).abs().mean(dim=(1, 2))).mean()
        torch.testing.assert_close(fused(x, real, fake, alpha), wanted)
    zero = fused(x, real, real, 1.2)
    assert float(zero) == 0
    assert spread(x, real).shape == (8, 1, 1)


def test_each_loss_trains_its_own_module_only_and_the_critic_goes_first():
    method = SiD(fitted(), fitted(), Critic(unlike()), ONE, critic_steps=2)
    assert run_updates(method) == ["critic", "critic", "student"]


def test_no_gradient_where_the_student_is_the_teacher():
    own, student = gaussian((1.0, -0.5), 0.4), Network(Shifted((1.0, -0.5), 0.4), FLOW)
    SiD(student, exact(own), Critic(exact(own)), ONE).student_loss(batch(), generator()).backward()
    assert float(student.module.mean.grad.abs().max()) < 1e-6


@pytest.mark.parametrize("alpha", [0.5, 1.2])
def test_one_step_beats_the_teachers_one_step_by_far(tmp_path, alpha):
    student = fitted()
    method = SiD(student, exact(), Critic(fitted()), ONE, critic_steps=3, alpha=alpha)
    ours, teachers = one_step(trained(method, student, tmp_path)), one_step(exact())
    assert ours < teachers / 8, (ours, teachers)


def test_bad_values_are_one_sentence():
    with pytest.raises(InputError, match=r"^The 'alpha' of SiD must be 0 or above"):
        SiD(fitted(), exact(), Critic(fitted()), ONE, alpha=-1.0)
    with pytest.raises(InputError, match=r"^The 'critic_steps' of SiD must be at least 1"):
        SiD(fitted(), exact(), Critic(fitted()), ONE, critic_steps=0)
