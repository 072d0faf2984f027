"""The 128×4 layout: an exact inverse, and the same as torchao's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.numerics.swizzle import padded, swizzle, unswizzle

SIDES = st.integers(1, 300), st.integers(1, 13)


def scales(rows: int, columns: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(rows * 1000 + columns)
    return torch.randint(1, 120, (rows, columns), generator=random, dtype=torch.uint8).view(torch.float8_e4m3fn)


@given(*SIDES)
@settings(max_examples=60, deadline=None)
def test_unswizzle_undoes_swizzle(rows: int, columns: int) -> None:
    x = scales(rows, columns)
    y = swizzle(x)
    assert y.shape == padded(rows, columns)
    assert torch.equal(unswizzle(y, rows, columns).view(torch.uint8), x.view(torch.uint8))


@given(*SIDES)
@settings(max_examples=60, deadline=None)
def test_it_is_torchaos(rows: int, columns: int) -> None:
    utils = pytest.importorskip("torchao.prototype.mx_formats.utils")
    x = scales(rows, columns)
    assert torch.equal(swizzle(x).reshape(-1).view(torch.uint8), utils.to_blocked(x.view(torch.uint8)))


def test_swizzling_moves_scales() -> None:
    x = scales(128, 4)
    assert not torch.equal(swizzle(x).view(torch.uint8), x.view(torch.uint8))
