"""Quality figures against exact values and against torchmetrics and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torchmetrics.functional.image import structural_similarity_index_measure

from fewstep.bench.quality import SAME, frechet, psnr, ssim
from fewstep.errors import InputError


@pytest.fixture
def pictures() -> np.ndarray:
    return np.random.default_rng(0).random((3, 24, 20, 3)).astype(np.float32)


def test_psnr_of_a_known_error(pictures: np.ndarray) -> None:
    assert psnr(np.zeros((2, 4, 4, 3)), np.full((2, 4, 4, 3), 0.1)) == pytest.approx(20)
    assert psnr(pictures, pictures) == SAME


def test_one_picture_that_is_the_same_does_not_hide_the_others(pictures: np.ndarray) -> None:
    other = pictures.copy()
    other[1:] = np.clip(other[1:] + 0.1, 0, 2)
    assert psnr(other, pictures) == pytest.approx((SAME + 20 + 20) / 3, abs=1e-3)


def test_videos_are_taken_frame_by_frame(pictures: np.ndarray) -> None:
    blurred = pictures * 0.9
    assert psnr(blurred[None], pictures[None]) == psnr(blurred, pictures)
    assert ssim(blurred[None], pictures[None]) == ssim(blurred, pictures)


def test_ssim_is_the_known_one(pictures: np.ndarray) -> None:
    noisy = np.clip(pictures + 0.2 * np.random.default_rng(1).normal(size=pictures.shape), 0, 1)
    a, b = (torch.from_numpy(p.astype(np.float64)).permute(0, 3, 1, 2) for p in (noisy, pictures))
    _, full = structural_similarity_index_measure(a, b, data_range=1.0, return_full_image=True)
    # torchmetrics pads before it blurs; within five pixels of the edge that changes the result, and only there.
    assert ssim(noisy, pictures) == pytest.approx(float(full[..., 5:-5, 5:-5].mean()), abs=1e-6)
    assert ssim(pictures, pictures) == pytest.approx(1)


def test_pictures_must_be_of_one_shape(pictures: np.ndarray) -> None:
    with pytest.raises(InputError, match="one shape"):
        psnr(pictures, pictures[:2])
    with pytest.raises(InputError, match="11×11"):
        ssim(pictures[:, :8], pictures[:, :8])


def test_frechet_of_gaussians_moved_and_stretched() -> None:
    a = np.random.default_rng(0).normal(size=(500, 4))
    a = (a - a.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(a, rowvar=False))).T  # exactly N(0, 1)
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet(a + 3, a) == pytest.approx(4 * 9)
    assert frechet(2 * a, a) == pytest.approx(4 * (4 + 1 - 2 * 2))


def test_frechet_is_the_formulas_also_with_fewer_samples_than_features() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 8)), rng.normal(size=(40, 8)) * 1.5 + 0.3
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    shift = a.mean(0) - b.mean(0)
    expected = shift @ shift + np.trace(cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real)
    assert frechet(a, b) == pytest.approx(expected, rel=1e-4)


def test_frechet_needs_rows_of_one_width() -> None:
    with pytest.raises(InputError, match="one width"):
        frechet(np.zeros((3, 2)), np.zeros((3, 4)))
    with pytest.raises(InputError, match="two or more"):
        frechet(np.zeros((1, 2)), np.zeros((3, 2)))
