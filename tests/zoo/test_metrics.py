"""Distances between sets of features, against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import linalg

from fewstep.errors import InputError
from fewstep.zoo.metrics import frechet, spread


def test_frechet_is_the_textbook_formula() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(50, 4)), rng.normal(size=(60, 4)) @ rng.normal(size=(4, 4)) + 1
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * linalg.sqrtm(cov_a @ cov_b).real)
    assert frechet(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet(b, a) == pytest.approx(frechet(a, b), rel=1e-9)


def test_frechet_of_a_shift_is_its_square() -> None:
    a = np.random.default_rng(1).normal(size=(40, 3))
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet(a, a + np.array([3, 0, 4])) == pytest.approx(25)


def test_frechet_of_a_stretch_is_that_of_the_deviations() -> None:
    a = np.random.default_rng(2).normal(size=(40, 1))
    a = (a - a.mean()) / a.std(ddof=1)
    assert frechet(a, 3 * a) == pytest.approx(4)


def test_frechet_takes_a_column_that_never_changes() -> None:
    a = np.random.default_rng(3).normal(size=(40, 2)) * [1, 0]
    assert frechet(a, a + np.array([0, 2])) == pytest.approx(4)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (np.zeros((1, 3)), np.zeros((5, 3))),
        (np.zeros((5, 3)), np.zeros((5, 2))),
        (np.zeros(5), np.zeros((5, 2))),
        (np.full((5, 2), np.inf), np.zeros((5, 2))),
    ],
)
def test_sets_without_a_covariance_are_refused(a: np.ndarray, b: np.ndarray) -> None:
    with pytest.raises(InputError, match="frechet"):
        frechet(a, b)


def test_spread_is_the_mean_distance_of_pairs() -> None:
    assert spread(np.array([[0.0], [1.0], [3.0]])) == pytest.approx((1 + 3 + 2) / 3)
    assert spread(np.ones((4, 2))) == 0
    assert spread(np.ones((1, 2))) == 0
