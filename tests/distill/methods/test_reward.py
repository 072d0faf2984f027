"""A reward by hand: a judge that is a plane, whose slope is the same everywhere."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fewstep.distill.engine.roles import Network
from fewstep.distill.methods.dmd2 import DMD2
from fewstep.distill.methods.reward import Reward
from fewstep.distill.methods.scores import Critic, Levels
from fewstep.errors import InputError
from tests.distill.methods.matching_toys import (
    FLOW,
    ONE,
    Shifted,
    batch,
    exact,
    fitted,
    gaussian,
    generator,
    run_updates,
    unlike,
)

SLOPE = torch.tensor([3.0, -4.0])


class Plane(nn.Module):
    """logit = slope · x_t, plus what the condition says."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(SLOPE.clone())

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        logits: Tensor = x_t @ self.slope
        return logits if cond is None else logits + cond


def reward(weight: float = 1.0, levels: Levels | None = None) -> Reward:
    plane = Plane()
    return Reward(plane, plane, FLOW, weight, levels or Levels(0.0, 1e-6))


def test_the_gradient_is_the_slope_where_a_sample_is_wrong():
    x, cond = torch.randn(16, 2, generator=generator()), torch.linspace(-9, 9, 16)
    found = reward(2.0).gradient(x, cond, generator())
    wrong = torch.sigmoid(-(x @ SLOPE + cond))
    size = SLOPE.square().mean().sqrt()
    torch.testing.assert_close(found, -2.0 * wrong[:, None] * SLOPE / size, rtol=1e-3, atol=1e-4)
    assert found[0].norm() > 100 * found[-1].norm()  # what is right already is left alone


def test_samples_are_judged_at_the_noise_levels_that_were_asked_for():
    seen: list[Tensor] = []
    plane = Plane()

    def judge(x_t: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        seen.append(t)
        return plane(x_t, t, cond)

    Reward(judge, plane, FLOW, levels=Levels(0.2, 0.4)).gradient(torch.zeros(64, 2), None, generator())
    assert 0.2 <= float(seen[0].min()) < 0.25
    assert 0.35 < float(seen[0].max()) <= 0.4


def test_the_judge_gets_no_gradient_and_is_as_it_was():
    one = reward()
    one.gradient(torch.randn(4, 2), None, generator())
    assert all(p.grad is None and p.requires_grad for p in one.module.parameters())


def test_where_the_scores_agree_only_the_judge_moves_the_student():
    own = gaussian((1.0, -0.5), 0.4)
    grads = {}
    for name, one in {"without": None, "with": reward(levels=Levels())}.items():
        student = Network(Shifted((1.0, -0.5), 0.4), FLOW)
        method = DMD2(student, exact(own), Critic(exact(own)), ONE, reward=one)
        method.student_loss(batch(), generator()).backward()
        grads[name] = student.module.mean.grad
    assert float(grads["without"].abs().max()) < 1e-6
    assert float(torch.cosine_similarity(grads["with"], -SLOPE, dim=0)) == pytest.approx(1, abs=1e-5)


def test_updates_are_as_without_a_judge_which_is_not_trained():
    one = reward()
    method = DMD2(fitted(), fitted(), Critic(unlike()), ONE, critic_steps=2, reward=one)
    assert run_updates(method) == ["critic"] * 2 + ["student"]
    assert method.frozen["judge"] is one.module
    assert "judge" not in method.modules


def test_a_weight_must_be_above_0():
    with pytest.raises(InputError, match="'judge_weight' of a reward must be above 0"):
        reward(0.0)
