"""Relative change and the monotone fit, against hand-made values and scipy."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import isotonic_regression

from fewstep.calibrate.curve import Curve, fit, relative_change

POINTS = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30)


def test_relative_change_by_hand() -> None:
    assert relative_change(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 2.0])) == pytest.approx((4 / 5) ** 0.5)
    assert relative_change(torch.zeros(2), torch.zeros(2)) == 0
    assert relative_change(torch.ones(2), torch.zeros(2)) == math.inf
    assert math.isnan(relative_change(torch.tensor([math.nan]), torch.ones(1)))


@given(POINTS, st.lists(st.floats(0, 5), min_size=2))
def test_the_curve_never_falls_and_is_never_negative(points: list[tuple[float, float]], at: list[float]) -> None:
    curve = fit(*zip(*points, strict=True))
    values = [curve(x) for x in sorted(at)]
    assert all(a <= b + 1e-12 for a, b in pairwise(values))
    assert min(values) >= 0


@given(POINTS)
def test_the_fit_is_the_isotonic_regression(points: list[tuple[float, float]]) -> None:
    """Against scipy's, on points of different x."""
    unique = sorted(dict(points).items())
    curve = fit(*zip(*unique, strict=True))
    expected = isotonic_regression([y for _, y in unique]).x
    assert np.allclose([curve(x) for x, _ in unique], expected)


def test_points_of_one_x_are_averaged() -> None:
    assert fit([0.5, 0.5, 1.0], [0.0, 1.0, 2.0]) == Curve((0.5, 1.0), (0.5, 2.0))


def test_outside_the_points() -> None:
    curve = Curve((0.1, 0.2), (0.3, 0.5))
    assert curve(0.0) == 0.3  # below: what the least change did
    assert curve(0.15) == pytest.approx(0.4)
    assert curve(0.2) == 0.5
    assert curve(0.4) == pytest.approx(1.0)  # above: in proportion, so that nothing unheard of is free
    assert curve(math.inf) == math.inf
    assert curve(math.nan) == math.inf
