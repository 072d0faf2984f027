"""f-distill: the weights are those of the divergences, and with exact ratios the gradient is the divergence's own."""

from __future__ import annotations

import pytest
import torch

from fewstep.distill.engine.checkpoint import saved
from fewstep.distill.engine.loop import Settings
from fewstep.distill.methods.dmd2 import DMD2
from fewstep.distill.methods.f_distill import FDistill, H, ratio, updated_means
from fewstep.distill.methods.scores import Critic
from fewstep.errors import InputError
from tests.distill.methods.matching_toys import (
    FLOW,
    ONE,
    batch,
    exact,
    fitted,
    gaussian,
    generator,
    one_step,
    own_gan,
    run_updates,
    trained,
)


def dmd2(**values):
    return DMD2(fitted(), exact(), Critic(fitted()), ONE, **{"critic_steps": 3, "gan": own_gan(), **values})


F = {
    "kl": lambda r: r * r.log(),
    "rkl": lambda r: -r.log(),
    "js": lambda r: r * r.log() - (r + 1) * ((r + 1) / 2).log(),
}


@pytest.mark.parametrize("divergence", F)
def test_weights_are_second_derivatives_times_the_square(divergence):
    r = torch.tensor([0.1, 0.5, 1.0, 3.0, 20.0], dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(F[divergence](r).sum(), r, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), r)
    torch.testing.assert_close(H[divergence](r.detach()), second * r.detach() ** 2)


def test_with_exact_ratios_the_gradient_is_that_of_forward_kl():
    """d/dm KL(p ‖ N(m, v)) = (m − mean of p) / v, however wide p is."""
    p, q = gaussian((0.5, 0.0), 0.6), gaussian((-0.2, 0.3), 1.0)
    y = q.sample(400_000, generator()).requires_grad_()
    (difference,) = torch.autograd.grad((q.log_prob(y) - p.log_prob(y)).sum(), y)
    y = y.detach()
    r = (p.log_prob(y) - q.log_prob(y)).exp()
    found = (H["kl"](r)[:, None] * difference).mean(dim=0)
    torch.testing.assert_close(found, torch.tensor([-0.7, 0.3]), rtol=0, atol=0.01)
    unweighted = difference.mean(dim=0)  # of the reverse KL: (m − mean of p) / 0.6²
    torch.testing.assert_close(unweighted, torch.tensor([-0.7, 0.3]) / 0.36, rtol=0, atol=0.02)


def test_ratios_are_exp_of_the_mean_logit_clipped():
    logits = torch.tensor([[0.0, 0.0], [1.0, 3.0], [-9.0, -9.0], [99.0, 99.0]])
    assert ratio(logits).tolist() == pytest.approx([1.0, 7.389, 0.1, 20.0], rel=1e-3)


def test_means_run_in_each_bin_by_itself():
    found = updated_means(torch.ones(3), torch.tensor([2.0, 4.0, 5.0]), torch.tensor([0, 0, 2]), decay=0.9)
    assert found.tolist() == pytest.approx([0.9 + 0.1 * 3, 1.0, 0.9 + 0.1 * 5])


def test_weights_have_mean_1_and_no_noise_level_prevails():
    """Ratios of 2 at low noise and ½ at high are a discriminator's fault: in the mean r is 1 at each level."""
    method = FDistill(dmd2(), "kl", decay=0.0)
    t = torch.linspace(0.02, 0.98, 200)
    logits = torch.where(t < 0.5, 2.0, 0.5).log()[:, None].repeat(1, 3)
    torch.testing.assert_close(method.weights(logits, t), torch.ones(200))
    spread = logits + 0.3 * torch.randn(200, 1, generator=generator())
    weights = method.weights(spread, t)
    assert float(weights.mean()) == pytest.approx(1, rel=1e-5)
    assert float(weights.std()) > 0.2


def test_reverse_kl_is_dmd2():
    plain, weighted = dmd2(), FDistill(dmd2(), "rkl")
    assert run_updates(plain) == run_updates(weighted) == ["critic", "discriminator"] * 3 + ["student"]
    both = zip(plain.updates(batch(), generator()), weighted.updates(batch(), generator()), strict=True)
    for x, y in both:
        torch.testing.assert_close(x.loss, y.loss, rtol=1e-5, atol=1e-7)


def test_the_running_means_are_saved_with_the_discriminator(tmp_path):
    method = FDistill(dmd2(critic_steps=1))
    trained(method, method.dmd2.student, tmp_path, Settings(3, rate=1e-3))
    means = method.dmd2.gan.module.mean_ratios.clone()
    assert not torch.equal(means, torch.ones(10))
    assert len(saved(tmp_path)) == 1
    again = FDistill(dmd2(critic_steps=1))
    trained(again, again.dmd2.student, tmp_path, Settings(3, rate=1e-3))
    assert torch.equal(again.dmd2.gan.module.mean_ratios, means)


@pytest.mark.parametrize("divergence", ["kl", "js"])
def test_one_step_beats_the_teachers_one_step_by_far(tmp_path, divergence):
    method = FDistill(dmd2(), divergence)
    ours, teachers = one_step(trained(method, method.dmd2.student, tmp_path)), one_step(exact())
    assert ours < teachers / 8, (ours, teachers)


@pytest.mark.parametrize(
    ("field", "value"), [("divergence", "tv"), ("lowest", 0), ("highest", 0.5), ("bins", 0), ("decay", 1.0)]
)
def test_bad_values_are_one_sentence(field, value):
    with pytest.raises(InputError, match=f"^The '{field}' of f-distill must be"):
        FDistill(dmd2(), **{field: value})


@pytest.mark.parametrize("gan", [None, own_gan(kind="hinge")], ids=["none", "hinge"])
def test_a_discriminator_that_knows_no_ratio_is_refused(gan):
    with pytest.raises(InputError, match="f-distill needs a discriminator of kind 'softplus'"):
        FDistill(dmd2(gan=gan))


def test_bins_are_of_the_flow_time():
    method = FDistill(dmd2(), "kl", bins=2, decay=0.0)
    method.weights(torch.tensor([[1.0], [2.0]]), FLOW.time_of(torch.tensor([0.1, 9.0])))
    assert method.dmd2.gan.module.mean_ratios.tolist() == pytest.approx([2.718, 7.389], rel=1e-3)
