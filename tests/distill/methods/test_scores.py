"""Noise levels, the critic's loss, and weights held still."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fewstep.distill.engine.roles import Network
from fewstep.distill.methods.scores import EVERYWHERE, Critic, GuidedWithin, Levels, flow_time, held, spread
from fewstep.errors import InputError
from fewstep.models.trace import trace
from tests.distill.methods.matching_toys import FLOW, MIXTURE, SCHEDULES, exact, fitted, gaussian, has_gradient
from tests.distill.pipes import CALL, pipeline


def draw(levels, schedule=FLOW, n=20000, seed=0):
    return flow_time(schedule, levels.draw(schedule, n, torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{s.kind}-{s.prediction}")
@pytest.mark.parametrize("levels", [Levels(low=0.1, high=0.8), Levels(low=0.1, high=0.8, shift=3.0, std=1.0)])
def test_levels_are_the_same_for_every_schedule(levels, schedule):
    torch.testing.assert_close(draw(levels, schedule), draw(levels), rtol=1e-9, atol=1e-9)


def test_levels_are_drawn_as_they_say():
    even = draw(Levels(low=0.2, high=0.6))
    assert 0.2 <= float(even.min()) < 0.21
    assert 0.59 < float(even.max()) <= 0.6
    assert float(even.mean()) == pytest.approx(0.4, abs=0.005)
    assert float(draw(Levels(0.0, 1.0, shift=3.0)).median()) == pytest.approx(3 / 4, abs=0.01)  # 3·½ / (1 + 2·½)
    logit = draw(Levels(0.0, 1.0, shift=math.e, std=0.7)).logit()
    assert float(logit.mean()) == pytest.approx(1.0, abs=0.02)
    assert float(logit.std()) == pytest.approx(0.7, abs=0.02)


@pytest.mark.parametrize(("field", "value"), [("low", -0.1), ("high", 0.01), ("high", 1.1), ("shift", 0), ("std", 0)])
def test_bad_levels_are_one_sentence(field, value):
    with pytest.raises(InputError, match=f"^The '{field}' of the noise levels must be"):
        Levels(**{field: value})


def test_spread_is_a_mean_distance_for_each_sample():
    x = torch.tensor([[1.0, 3.0], [0.0, 0.0]], requires_grad=True)
    found = spread(x, torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
    assert found.tolist() == [[1.5], [pytest.approx(1e-5)]]
    assert not found.requires_grad


def test_held_weights_get_no_gradient_but_what_runs_through_them_does():
    net, x = nn.Linear(2, 2), torch.ones(1, 2, requires_grad=True)
    net.bias.requires_grad_(False)
    with held(net):
        net(x).sum().backward()
    assert net.weight.grad is None
    assert x.grad.abs().sum() > 0
    assert net.weight.requires_grad
    assert not net.bias.requires_grad


class Biased(nn.Module):
    def __init__(self, mixture, bias):
        super().__init__()
        self.exact, self.bias = mixture.denoiser(FLOW), nn.Parameter(torch.tensor(bias))

    def forward(self, x_t, t, cond=None):
        return self.exact(x_t, t) + self.bias


def test_the_critics_loss_is_least_at_the_exact_denoiser_of_the_samples():
    """Off by a bias b in the velocity it is b² more, and its slope there is 2b, per element."""
    own = gaussian((0.5, -1.0), 0.4)
    x = own.sample(50000, torch.Generator().manual_seed(0))
    found = {}
    for bias in (-0.5, 0.0, 0.5):
        critic = Critic(Network(Biased(own, bias), FLOW))
        loss = critic.loss(x, None, torch.Generator().manual_seed(1))
        loss.backward()
        found[bias] = float(loss.detach()), float(critic.module.bias.grad)
    assert [slope for _, slope in found.values()] == pytest.approx([-1.0, 0.0, 1.0], abs=0.03)
    assert found[0.5][0] - found[0.0][0] == pytest.approx(0.25, abs=0.01)


def test_the_critics_loss_does_not_reach_the_student():
    student, critic = fitted(), Critic(fitted())
    x = student(MIXTURE.sample(8, torch.Generator().manual_seed(0)), 1.0)
    critic.loss(x, None, torch.Generator().manual_seed(0)).backward()
    assert not has_gradient(student.module)
    assert has_gradient(critic.module)


def test_a_teacher_is_guided_within_these_noise_levels_only():
    traced = trace(pipeline(), **{**CALL, "num_inference_steps": 4, "prompt": ["a red ring", "a blue cross"]})
    teacher, told = GuidedWithin(traced, (0.5, 0.9)), traced.with_module(traced.module, guided=False)
    x_t = traced.noise.repeat(2, *[1] * (traced.noise.dim() - 1))
    cond = traced.condition(prompt=["a red ring", "a blue cross"] * 2)
    with torch.no_grad():
        t = torch.tensor([0.3, 0.5, 0.9, 0.95], dtype=torch.float64)
        guided, plain = traced(x_t, t, cond), told(x_t, t, cond)
        assert not torch.equal(guided, plain)
        assert torch.equal(teacher(x_t, t, cond), torch.stack([plain[0], guided[1], guided[2], plain[3]]))
        assert torch.equal(teacher(x_t, 0.7, cond), traced(x_t, 0.7, cond))
        assert torch.equal(teacher(x_t, 0.95, cond), told(x_t, 0.95, cond))
    teacher.check(traced.noise, traced.cond)


def test_noise_levels_for_a_teacher_without_guidance_are_an_error():
    GuidedWithin(exact(), EVERYWHERE).check(torch.zeros(2, 2), None)
    with pytest.raises(InputError, match="it is not guided at all"):
        GuidedWithin(exact(), (0.5, 1.0)).check(torch.zeros(2, 2), None)
    with pytest.raises(InputError, match=r"^The 'guided' of a teacher must be two rising numbers"):
        GuidedWithin(exact(), (0.9, 0.5))
