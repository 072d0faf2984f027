"""Optimizers by name: what one step of each does, exactly, and which modules they refuse."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fewstep.distill.engine.optimizers import Options, build
from fewstep.errors import InputError


def moved(name, module, options, gradient):
    """By one step with this gradient everywhere."""
    before = [p.detach().clone() for p in module.parameters()]
    for p in module.parameters():
        p.grad = torch.full_like(p, gradient)
    for optimizer in build(name, module, options):
        optimizer.step()
    return [(p.detach() - old, old) for p, old in zip(module.parameters(), before, strict=True)]


@pytest.mark.parametrize("betas", [(0.9, 0.99), (0.0, 0.99)])
def test_the_first_step_of_adamw_is_the_rate_and_decay_is_decoupled(betas):
    options = Options(1e-2, betas, weight_decay=0.5)
    for step, old in moved("adamw", nn.Linear(3, 2), options, gradient=7.0):
        torch.testing.assert_close(step, -1e-2 - 1e-2 * 0.5 * old)


def test_the_betas_are_those_asked_for():
    """With no momentum, the second of two opposite steps is the rate again: 1 / √(both squares, corrected) = 1."""
    module = nn.Linear(1, 1, bias=False)
    (optimizer,) = build("adamw", module, Options(1e-2, (0.0, 0.99)))
    steps = []
    for gradient in (1.0, -1.0):
        before = float(module.weight.detach())
        module.weight.grad = torch.full_like(module.weight, gradient)
        optimizer.step()
        steps.append(float(module.weight.detach()) - before)
    assert steps == [pytest.approx(-1e-2, rel=1e-4), pytest.approx(1e-2, rel=1e-4)]


def test_muon_takes_matrices_of_blocks_and_leaves_the_rest_to_adamw():
    module = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    first, second = build("muon", module, Options(1e-3, (0.0, 0.9), 0.1))
    assert [p.dim() for p in first.param_groups[0]["params"]] == [2]
    assert [p.dim() for p in second.param_groups[0]["params"]] == [1, 1, 1]
    assert second.param_groups[0]["betas"] == (0.0, 0.9)
    assert (first.param_groups[0]["weight_decay"], second.param_groups[0]["weight_decay"]) == (0.1, 0.1)
    with pytest.raises(InputError, match="Muon needs weight matrices in repeated blocks, and Linear has none"):
        build("muon", nn.Linear(2, 2), Options(1e-3))


def test_frozen_parameters_are_left_alone():
    module = nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    (optimizer,) = build("adamw", module, Options(1e-3))
    assert optimizer.param_groups[0]["params"] == [module.weight]


def test_an_unknown_name_is_one_sentence():
    with pytest.raises(InputError, match=r"^The 'optimizer' of the training loop must be one of adamw, muon"):
        build("sgd", nn.Linear(2, 2), Options(1e-3))
