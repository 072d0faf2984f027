"""The distance: exact where mathematics gives it, 0 for one distribution, and larger for what is worse."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from fewstep.distill.watching.score import distance, energy, features
from fewstep.errors import InputError

CONDITIONS, DRAWS = 8, 4


def pictures(seed=0, shift=0.0):
    """(conditions, draws, 3, 32, 32): each condition has its own layout and colours, each draw its own texture."""
    draw, noise = torch.Generator().manual_seed(99), torch.Generator().manual_seed(seed)
    layout = F.interpolate(torch.rand(CONDITIONS, 3, 4, 4, generator=draw), size=(32, 32), mode="bilinear")
    coarse = torch.randn(CONDITIONS * DRAWS, 3, 8, 8, generator=noise)
    fine = torch.randn(CONDITIONS * DRAWS, 3, 32, 32, generator=noise)
    texture = 0.1 * (F.interpolate(coarse, size=(32, 32)) + fine).unflatten(0, (CONDITIONS, DRAWS))
    return layout[:, None] + texture + shift


def blurred(x, by):
    small = F.adaptive_avg_pool2d(x.flatten(0, 1), x.shape[-1] // by)
    return F.interpolate(small, size=x.shape[-2:], mode="bilinear").unflatten(0, x.shape[:2])


def test_energy_of_two_gaussians_is_the_exact_one():
    """In one dimension E|X| of N(m, s²) is s·√(2/π)·exp(−m²/2s²) + m·erf(m/s√2)."""

    def mean(m, s):
        return s * math.sqrt(2 / math.pi) * math.exp(-(m**2) / (2 * s**2)) + m * math.erf(m / (s * math.sqrt(2)))

    quantiles = torch.special.ndtri((torch.arange(400, dtype=torch.float64) + 0.5) / 400)
    x, y = quantiles.view(1, -1, 1), 0.5 + 2 * quantiles.view(1, -1, 1)
    exact = 2 * mean(0.5, math.sqrt(5)) - mean(0, math.sqrt(2)) - mean(0, math.sqrt(8))
    assert energy(x, y) == pytest.approx(exact, abs=0.01)
    assert exact > 0.2


def test_it_is_zero_for_itself_and_zero_on_average_for_other_draws_also_from_related_noise():
    x = pictures()
    assert distance(x, x) == 0.0
    independent = [distance(pictures(seed), pictures(seed + 100)) for seed in range(6)]
    x, y = torch.randn(2, 8, 4, 3, generator=torch.Generator().manual_seed(0))
    related = [float(distance(x, 0.6 * x + 0.8 * y)), float(distance(x, y))]  # of one distribution, draw by draw alike
    assert abs(sum(independent)) / 6 < 0.02
    assert min(independent) < 0 < max(independent)  # nothing is clipped
    assert abs(related[0]) < 0.15


def test_blur_collapse_and_shift_are_worse_and_more_of_them_is_worse_still():
    teacher = pictures(1)
    floor = abs(distance(pictures(2), teacher))
    ladders = {
        "blur": [blurred(teacher, by) for by in (2, 4, 8)],
        "shift": [pictures(1, shift) for shift in (0.05, 0.2, 0.8)],
        "collapse": [c * teacher[:, :1] + (1 - c) * teacher for c in (0.5, 0.8, 1.0)],
        "contrast": [0.5 + c * (teacher - 0.5) for c in (1.2, 1.6, 2.5)],
        "other prompts": [torch.cat([teacher[:k].roll(1, 0), teacher[k:]]) for k in (2, 5, 8)],
    }
    for name, ladder in ladders.items():
        found = [distance(x, teacher) for x in ladder]
        assert found == sorted(found), name
        assert found[-1] > max(0.1, 5 * floor), name
        assert found[-1] <= 1


@pytest.mark.parametrize("shape", [(5,), (5, 40), (3, 20, 9), (3, 6, 12, 10), (3, 2, 2)])
def test_any_kind_of_sample(shape):
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(3, 5, *shape, generator=draw), torch.randn(3, 5, *shape, generator=draw)
    assert distance(x + 3, y) > 0.15 > distance(x, y)
    parts = features(x.flatten(0, 1))
    assert all(part.dim() == 2 and len(part) == 15 for part in parts)
    assert len(parts) == 1 + math.ceil(math.log2(max(4, *shape[1:], 4) / 4))


def test_one_draw_of_each_condition_is_taken_as_draws_of_one():
    x, y = pictures(1)[:, :1], pictures(2)[:, :1]
    assert distance(x, y) == distance(x.transpose(0, 1), y.transpose(0, 1))
    assert distance(x.flip(0), x) < 0.05 < distance(x + 1, x)


def test_bad_samples_are_one_sentence():
    x = torch.zeros(2, 2, 3)
    for wrong in (x[:1], x[..., :2], x[0]):
        with pytest.raises(InputError, match="'x' of distance must be"):
            distance(wrong, x)
    with pytest.raises(InputError, match="2 samples or more"):
        distance(x[:1, :1], x[:1, :1])


def test_samples_without_spread_and_samples_that_broke():
    x = torch.zeros(2, 2, 3)
    assert distance(x, x) == 0.0
    assert distance(x + 1, x) == 1.0
    assert math.isnan(distance(x * math.nan, x))


def test_it_has_no_unit():
    x, y = pictures(1), pictures(2)
    assert distance(255 * x, 255 * y) == pytest.approx(distance(x, y), rel=1e-4)
