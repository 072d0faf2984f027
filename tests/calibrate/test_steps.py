"""Steps read off diffusers' own schedulers, and guidance branches told apart."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from fewstep.calibrate.steps import Branches, Clock, identical, same

SCHEDULERS = [
    FlowMatchEulerDiscreteScheduler,
    DDIMScheduler,
    UniPCMultistepScheduler,
    DPMSolverMultistepScheduler,
    HeunDiscreteScheduler,
]


def requests(scheduler: Any, clock: Clock, calls: int) -> list[tuple[int, bool]]:
    """(step, first of a request?) of each denoiser call, `calls` a step."""
    scheduler.set_timesteps(4)
    seen = []
    x = torch.zeros(1, 2)
    for t in scheduler.timesteps:
        for _ in range(calls):
            step = clock.read(t.expand(1))
            seen.append((step.index, clock.began))
            assert step.total == len(scheduler.timesteps)
        x = scheduler.step(torch.zeros(1, 2), t, x).prev_sample
    return seen


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("calls", [1, 2, 3])
def test_the_step_is_right_however_often_the_denoiser_is_called(kind: Any, calls: int) -> None:
    scheduler = kind()
    clock = Clock(SimpleNamespace(scheduler=scheduler))
    for _ in range(2):  # two requests: the second is noticed
        seen = requests(scheduler, clock, calls)
        steps = len(scheduler.timesteps)
        assert [index for index, _ in seen] == [i for i in range(steps) for _ in range(calls)]
        assert [began for _, began in seen] == [True] + [False] * (len(seen) - 1)


def test_both_ends_are_ends() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    clock = Clock(SimpleNamespace(scheduler=scheduler))
    scheduler.set_timesteps(3)
    ends, sigmas = [], []
    for t in scheduler.timesteps:
        step = clock.read(t)
        ends.append(step.at_an_end)
        sigmas.append(step.sigma)
        scheduler.step(torch.zeros(1), t, torch.zeros(1))
    assert ends == [True, False, True]
    assert sigmas == pytest.approx(scheduler.sigmas[:3].tolist())


def test_sigma_of_a_scheduler_that_keeps_alphas() -> None:
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(4)
    step = Clock(SimpleNamespace(scheduler=scheduler)).read(scheduler.timesteps[0])
    alpha = scheduler.alphas_cumprod[scheduler.timesteps[0]]
    assert step.sigma == pytest.approx(float(((1 - alpha) / alpha).sqrt()))


class TestBranches:
    def test_the_same_tensors_are_one_branch_whatever_the_latents(self) -> None:
        branches, text = Branches[int](), torch.randn(2)
        first = branches.find({"encoder_hidden_states": text, "hidden_states": torch.zeros(1)}, 0, int)
        again = branches.find({"encoder_hidden_states": text, "hidden_states": torch.ones(1)}, 1, int)
        assert first is again

    def test_equal_values_are_enough_where_tensors_are_made_anew(self) -> None:
        branches, text = Branches[int](), torch.randn(2)
        first = branches.find({"text": text}, 0, int)
        assert branches.find({"text": text.clone()}, 1, int) is first

    def test_order_of_the_calls_does_not_matter(self) -> None:
        branches, a, b = Branches[str](), torch.randn(2), torch.randn(2)
        first, second = (branches.find({"text": text}, 0, str) for text in (a, b))
        assert branches.find({"text": b}, 1, str) is second
        assert branches.find({"text": a}, 1, str) is first
        assert branches.find({"text": b}, 2, str) is second  # one branch alone: guidance for a part of the steps

    def test_equal_prompts_stay_two_branches(self) -> None:
        branches, text = Branches[int](), torch.randn(2)
        first = branches.find({"text": text}, 0, int)
        second = branches.find({"text": text}, 0, int)
        assert first is not second
        assert len(branches) == 2

    def test_what_never_matches_is_never_mixed_up(self) -> None:
        branches = Branches[int]()
        for step in range(3):
            branches.find({"text": torch.randn(2)}, step, int)
        assert len(branches) == 3

    def test_options_count_too(self) -> None:
        """Skip-layer guidance calls with the same text and another option."""
        branches, text = Branches[int](), torch.randn(2)
        first = branches.find({"text": text, "skip_layers": [3]}, 0, int)
        assert branches.find({"text": text, "skip_layers": None}, 1, int) is not first


def test_alike() -> None:
    x = torch.ones(2)
    assert identical({"a": [x, 1]}, {"a": [x, 1]})
    assert not identical({"a": x}, {"a": x.clone()})
    assert same({"a": (x, None)}, {"a": (x.clone(), None)})
    assert not same(x, x.double())
    assert not same([x], (x,))
