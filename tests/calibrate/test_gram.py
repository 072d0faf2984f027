"""Errors of forecasts from inner products, against the vectors themselves; interpolation against polynomials."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewstep.calibrate.gram import SAMPLE, gram, lagrange, onto, sampled, size

LEVELS = st.lists(st.integers(0, 1000), min_size=4, max_size=12, unique=True).map(
    lambda levels: [level / 1000 for level in sorted(levels, reverse=True)]
)


def test_the_size_of_a_combination_is_that_of_the_vector() -> None:
    rows = torch.randn(5, 100, generator=torch.Generator().manual_seed(0)).double()
    coefficients = torch.tensor([[1.0, -2.0, 0.0, 0.5, 3.0], [0.0, 0.0, 1.0, 0.0, -1.0]]).double()
    expected = (coefficients @ rows).square().mean(1).sqrt()
    assert torch.allclose(size(gram(list(rows)), coefficients), expected)


def test_a_sample_is_the_same_places_each_time_and_bounded() -> None:
    large = torch.arange(3 * SAMPLE + 5)
    assert len(sampled(large)) <= SAMPLE
    assert torch.equal(sampled(large), sampled(large + 0.0))
    assert torch.equal(sampled(torch.ones(2, 3)), torch.ones(6))


@given(LEVELS, st.lists(st.floats(-1, 1), min_size=4, max_size=4))
def test_cubics_are_carried_exactly_from_levels_to_levels(known: list[float], factors: list[float]) -> None:
    wanted = torch.linspace(known[0], known[-1], 7).tolist()
    cubic = sum(factor * torch.tensor(known).double() ** power for power, factor in enumerate(factors))
    expected = sum(factor * torch.tensor(wanted).double() ** power for power, factor in enumerate(factors))
    assert torch.allclose(onto(known, wanted) @ torch.as_tensor(cubic), torch.as_tensor(expected), atol=1e-4)


@given(LEVELS)
def test_a_known_level_is_taken_as_it_is(known: list[float]) -> None:
    assert torch.allclose(onto(known, known), torch.eye(len(known)).double(), atol=1e-12)


def test_outside_of_what_is_known_the_end_stands() -> None:
    assert onto([0.8, 0.5], [1.0, 0.1]).tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_newtons_form_on_squares() -> None:
    """The published series on the step index gives 213 for 15² from 10², 11² and 12² here; the truth is 225."""
    weights = lagrange([10.0, 11.0, 12.0], 15.0)
    assert sum(w * k * k for w, k in zip(weights, (10, 11, 12), strict=True)) == pytest.approx(225)
