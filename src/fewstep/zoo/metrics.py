"""Distances between sets of feature vectors: pure functions of arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fewstep.errors import InputError, bad_value

Array = NDArray[np.float64]


def frechet(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """The Fréchet distance of two sets of features, each taken as a Gaussian (arXiv 1706.08500, equation 6).

    |mean a − mean b|² + tr(A + B − 2·(A·B)^½), in float64; at least 0. It is biased upwards with few samples: quote
    the number of samples, and what as many real ones get.

    Args:
        a, b: shapes (n, d) and (m, d), n and m at least 2.

    Raises:
        InputError: other shapes, or values that are not finite.
    """
    first, second = _checked("a", a), _checked("b", b)
    if first.shape[1] != second.shape[1]:
        raise InputError(bad_value("b", "frechet", f"of as many features as a, {first.shape[1]}", second.shape))
    root = _square_root(np.atleast_2d(np.cov(first, rowvar=False)))
    other = np.atleast_2d(np.cov(second, rowvar=False))
    # tr (A·B)^½ = tr (A^½·B·A^½)^½, and that product is symmetric: no complex roots appear.
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ other @ root), 0, None)).sum()
    apart = float(((first.mean(0) - second.mean(0)) ** 2).sum())
    return max(apart + float((root**2).sum() + np.trace(other) - 2 * cross), 0.0)


def spread(values: NDArray[np.floating]) -> float:
    """The mean distance between two different rows of `values` (n, d); 0 for fewer than two rows."""
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2:
        return 0.0
    distances = np.linalg.norm(values[:, None] - values[None], axis=-1)
    return float(distances.sum() / (len(values) * (len(values) - 1)))


def _checked(name: str, given: NDArray[np.floating]) -> Array:
    values: Array = np.asarray(given, dtype=np.float64)
    if values.ndim != 2 or len(values) < 2:
        raise InputError(bad_value(name, "frechet", "an array of shape (n, d) with n ≥ 2", values.shape))
    if not np.isfinite(values).all():
        raise InputError(bad_value(name, "frechet", "finite", "NaN or infinity"))
    return values


def _square_root(covariance: Array) -> Array:
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray((vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T)
