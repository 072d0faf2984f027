"""The mixture's denoiser against calculus and against draws."""

from __future__ import annotations

import pytest
import torch

from fewstep.diffusion.analytic import GaussianMixture
from fewstep.diffusion.schedule import Schedule
from fewstep.errors import InputError

MIXTURE = GaussianMixture(
    torch.tensor([[2.0, 0.0], [-1.0, 1.5]], dtype=torch.float64),
    torch.tensor([0.3, 0.5], dtype=torch.float64),
    torch.tensor([0.7, 0.3], dtype=torch.float64),
)
SCHEDULES = (Schedule.flow(), Schedule.vp(torch.linspace(0.999, 0.01, 50)), Schedule.edm())


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.kind)
def test_denoiser_is_tweedies_formula(schedule):
    """E[x0|x_t] = (x_t + sigma²·grad log p_t(x_t)) / alpha (arXiv 2206.00364, equation 3), with autograd's gradient."""
    t = 0.4
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (score,) = torch.autograd.grad(MIXTURE.noised(schedule, t).log_prob(x).sum(), x)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x_t = x.detach()
    x0 = schedule.to_x0(MIXTURE.denoiser(schedule)(x_t, t), x_t, t)
    torch.testing.assert_close(x0, (x_t + sigma**2 * score) / alpha)


def test_log_prob_is_a_density():
    side = torch.linspace(-6, 6, 241, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    assert abs(float(MIXTURE.log_prob(grid).exp().sum()) * 0.05**2 - 1) < 1e-6


def test_samples_have_the_mixtures_moments():
    x = MIXTURE.sample(40000, torch.Generator().manual_seed(0))
    mean = (MIXTURE.weights[:, None] * MIXTURE.means).sum(0)
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.03)


def test_a_condition_picks_the_component_and_times_may_differ():
    denoiser = MIXTURE.denoiser(Schedule.flow())
    x, t = torch.zeros(2, 2, dtype=torch.float64), torch.tensor([1.0, 0.5], dtype=torch.float64)
    cond = torch.tensor([1, 0])
    x0 = denoiser.x0(x, t, cond)
    torch.testing.assert_close(x0[0], MIXTURE.means[1])  # pure noise says nothing: the mean
    torch.testing.assert_close(x0[1:], denoiser.x0(x[1:], 0.5, cond[1:]))
    torch.testing.assert_close(denoiser(x, t)[1:], denoiser(x[1:], 0.5))


def test_bad_mixtures_are_refused():
    means = torch.zeros(2, 3)
    with pytest.raises(InputError, match="needs means"):
        GaussianMixture(means, torch.ones(3), torch.ones(2) / 2)
    with pytest.raises(InputError, match="sum to 1"):
        GaussianMixture(means, torch.ones(2), torch.ones(2))
