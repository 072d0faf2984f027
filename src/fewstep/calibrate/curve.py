"""How much one tensor differs from another, and a monotone curve from one kind of change to another. Pure functions."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def relative_change(new: Tensor, old: Tensor) -> float:
    """√mean|new − old|² / √mean|old|², in float32; 0 for equal tensors, inf when only `old` is zero.

    2411.19108, equation 4, has means of absolute values; with squares a Gram matrix tells the change between any two
    steps. Both of one shape, any device. Waits for the device: one number goes back to the host.
    """
    squares = torch.stack([(new.float() - old.float()).square().mean(), old.float().square().mean()])
    changed, size = squares.sqrt().tolist()
    if changed == 0:
        return 0.0
    return float(changed / size) if size > 0 else float("inf")


@dataclass(frozen=True)
class Curve:
    """A non-decreasing, piecewise linear function through (x[i], y[i]); y[0] below x[0], in proportion above the last
    x.

    The published polynomials (2411.19108) are not monotone and go negative outside the range they were fitted on, so
    that an unusual input buys free skips. This one can't: more change in never means less change out.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]

    def __call__(self, value: float) -> float:
        """The curve at `value` ≥ 0; inf for NaN."""
        last = self.x[-1]
        if value == last:
            return self.y[-1]
        if not value < last:  # also NaN; a curve that knows no change but 0 tells nothing of a larger one
            return self.y[-1] * value / last if last > 0 and value == value else float("inf")
        right = bisect_left(self.x, value)
        if right == 0:
            return self.y[0]
        x0, x1, y0, y1 = self.x[right - 1], self.x[right], self.y[right - 1], self.y[right]
        return y0 + (y1 - y0) * (value - x0) / (x1 - x0)


def fit(x: Sequence[float], y: Sequence[float]) -> Curve:
    """The non-decreasing curve with the least squared error at the points (pool adjacent violators).

    Points of one x are averaged first. A pool of points is a plateau of the curve. At least one point.
    """
    pools: list[list[tuple[float, float, int]]] = []  # each: (x, mean y, weight) of its points, all to get one value
    for point in _averaged(x, y):
        pools.append([point])
        while len(pools) > 1 and _mean(pools[-2]) >= _mean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    return Curve(
        tuple(point[0] for pool in pools for point in pool), tuple(_mean(pool) for pool in pools for _ in pool)
    )


def _averaged(x: Sequence[float], y: Sequence[float]) -> list[tuple[float, float, int]]:
    groups: dict[float, list[float]] = {}
    for key, value in sorted(zip(x, y, strict=True)):
        groups.setdefault(key, []).append(value)
    return [(key, sum(values) / len(values), len(values)) for key, values in groups.items()]


def _mean(pool: list[tuple[float, float, int]]) -> float:
    return sum(value * weight for _, value, weight in pool) / sum(weight for *_, weight in pool)
