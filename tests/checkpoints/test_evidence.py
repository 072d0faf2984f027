"""What numbers tell about themselves: a right matrix is never blamed, a wrong order shows where there is structure."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fewstep.checkpoints.evidence import faults_beside, misordered, own_faults, structure
from fewstep.checkpoints.layouts import FP8_TENSOR, MXFP8, NVFP4, other_nibble_first
from fewstep.numerics.quantized import quantize
from fewstep.numerics.swizzle import swizzle, unswizzle
from tests.checkpoints.making import LAYOUTS


def matrix(rows: int = 256, columns: int = 256) -> torch.Tensor:
    """Rows and columns of different sizes, as trained weights have them."""
    random = torch.Generator().manual_seed(0)
    sizes = torch.exp(
        0.6 * torch.randn((rows, 1), generator=random) + 0.6 * torch.randn((1, columns), generator=random)
    )
    return sizes * torch.randn((rows, columns), generator=random)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_right_matrix_has_no_faults(layout: object) -> None:
    q = quantize(matrix(), layout)  # type: ignore[arg-type]
    assert own_faults(q) == []
    assert faults_beside(q, matrix()) == []


@pytest.mark.parametrize("layout", [NVFP4, MXFP8], ids=["nvfp4", "mxfp8"])
def test_a_wrong_order_of_scales_shows_without_the_original(layout: object) -> None:
    q = quantize(matrix(256, 1024), layout)  # type: ignore[arg-type]
    once = replace(q, scale=swizzle(q.scale))
    assert any("swizzled" in clause for clause in own_faults(once))
    other = replace(q, scale=unswizzle(q.scale, *q.scale.shape))
    assert any("must be swizzled" in clause for clause in own_faults(other))


def test_noise_has_no_structure_and_is_not_blamed() -> None:
    scale = torch.rand((256, 16), generator=torch.Generator().manual_seed(1)) + 0.5
    assert abs(structure(scale)) < 0.05
    assert misordered(scale.to(torch.float8_e4m3fn)) is None


def test_a_scale_that_is_wrong_by_a_little_is_seen() -> None:
    q = quantize(matrix(), FP8_TENSOR)
    assert faults_beside(replace(q, scale=q.scale * 1.01), matrix())[0].startswith("its scale is wrong by a factor")
    assert faults_beside(replace(q, scale=q.scale * 1.5), matrix())[0].startswith("it differs from the original")


def test_the_common_mistakes_are_named() -> None:
    q = quantize(matrix(256, 1024), NVFP4)
    assert "other nibble" in faults_beside(replace(q, codes=other_nibble_first(q.codes)), matrix(256, 1024))[0]
    assert "too often" in faults_beside(replace(q, scale=swizzle(q.scale)), matrix(256, 1024))[0]
    assert (
        "must be swizzled" in faults_beside(replace(q, scale=unswizzle(q.scale, *q.scale.shape)), matrix(256, 1024))[0]
    )


def test_one_wrong_row_is_seen() -> None:
    q = quantize(matrix(1024, 64), NVFP4)
    scale = q.scale.clone()
    scale[77] = (scale[77].float() * 0.5).to(scale.dtype)
    assert "row 77" in faults_beside(replace(q, scale=scale), matrix(1024, 64))[0]
