"""Plans against brute force, their damage against a run that is known exactly, forecasts against polynomials."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fewstep.calibrate.gram import gram
from fewstep.techniques.cache.predictors import PREDICTORS, combined
from fewstep.techniques.cache.schedule import damages, plans, weights_of

STEPS = 7
SIGMAS = torch.linspace(1, 0, STEPS + 1).double() ** 1.3


def outputs(seed: int = 0) -> Tensor:
    """Smooth curves in 40 dimensions with a little noise, (STEPS, 40)."""
    generator = torch.Generator().manual_seed(seed)
    powers = torch.stack([SIGMAS[:-1] ** p for p in range(4)], 1)
    curve = powers @ torch.randn(4, 40, generator=generator).double()
    return curve + 0.01 * torch.randn(STEPS, 40, generator=generator).double()


def ended(rows: Tensor, computed: tuple[int, ...], name: str) -> Tensor:
    """What reusing does to x at the end, where the model's output does not depend on x: step by step."""
    matrix, missed = gram(list(rows)), torch.zeros(rows.shape[1]).double()
    for step in range(STEPS):
        known = [one for one in computed if one < step][-2:]
        if step in computed:
            continue
        pair = torch.tensor([[-1, known[0]] if len(known) == 1 else known])
        weights = PREDICTORS[name].pairs(SIGMAS, matrix, pair, step)[0]
        forecast = sum((weights[-k] * rows[known[-k]] for k in range(1, len(known) + 1)), torch.zeros(40).double())
        missed += (SIGMAS[step + 1] - SIGMAS[step]) * (rows[step] - forecast)
    return missed


@pytest.mark.parametrize("name", ["last", "linear", "fitted"])
def test_the_damage_of_a_stretch_is_what_it_does_to_x(name: str) -> None:
    rows = outputs()
    damage = damages(SIGMAS, gram(list(rows)), PREDICTORS[name], torch.ones(STEPS).double())
    for computed, (i, j, after) in {
        (0, 1, 2, 5, 6): (1, 2, 5),
        (0, 4, 5, 6): (-1, 0, 4),
        (0, 1, 2, 3): (2, 3, STEPS),
    }.items():
        expected = ended(rows, computed, name).square().mean().sqrt()
        assert float(damage[i + 1, j, after]) == pytest.approx(float(expected), rel=1e-6, abs=1e-9)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.sampled_from(["last", "linear", "fitted"]), st.integers(1, 2))
def test_no_plan_is_better_than_the_one_that_is_found(seed: int, name: str, first: int) -> None:
    matrix = gram(list(outputs(seed)))
    damage = damages(SIGMAS, matrix, PREDICTORS[name], torch.linspace(3, 1, STEPS).double())

    def cost(computed: tuple[int, ...]) -> float:
        with_ends = (-1, *computed, STEPS)
        stretches = zip(with_ends, pairwise(with_ends[1:]), strict=False)
        return sum(float(damage[i + 1, j, after]) ** 2 for i, (j, after) in stretches)

    for plan in plans(damage, STEPS, first=first):
        middle = range(first, STEPS - 1)
        others = [
            (*range(first), *chosen, STEPS - 1) for chosen in combinations(middle, len(plan.computed) - first - 1)
        ]
        assert plan.computed in others
        assert cost(plan.computed) == pytest.approx(min(map(cost, others)), rel=1e-6, abs=1e-12)
        assert plan.error == pytest.approx(cost(plan.computed) ** 0.5, rel=1e-6, abs=1e-9)


def test_more_steps_are_never_worse() -> None:
    errors = [p.error for p in plans(damages(SIGMAS, gram(list(outputs())), PREDICTORS["linear"], torch.ones(7)), 7)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == pytest.approx(0, abs=1e-9)


def test_fitted_weights_are_least_squares() -> None:
    rows = outputs(3)
    plan = plans(damages(SIGMAS, gram(list(rows)), PREDICTORS["fitted"], torch.ones(7)), 4)[-1]
    for step, (went_with, weights) in weights_of(plan, SIGMAS, gram(list(rows)), PREDICTORS["fitted"]).items():
        known = [one for one in plan.computed if one < step][-2:]
        assert list(went_with) == known
        best = torch.linalg.lstsq(rows[known].T, rows[step]).solution
        assert torch.allclose(torch.tensor(weights).double(), best, atol=1e-4)


@pytest.mark.parametrize(("name", "degree"), [("last", 0), ("linear", 1), ("quadratic", 2), ("cubic", 3)])
def test_a_polynomial_of_its_degree_is_forecast_exactly(name: str, degree: int) -> None:
    sigmas = [0.9, 0.7, 0.6, 0.45]
    kept = [{"blocks": {"hidden": torch.tensor([s**degree, 2 - s**degree], dtype=torch.float64)}} for s in sigmas]
    weights = PREDICTORS[name].weights(sigmas, 0.2)
    forecast = combined(weights, kept)["blocks"]["hidden"]
    assert forecast.tolist() == pytest.approx([0.2**degree, 2 - 0.2**degree])
    assert kept[-1]["blocks"]["hidden"].tolist() == pytest.approx([0.45**degree, 2 - 0.45**degree])  # left as it is
