"""Fidelity against exact values and against torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from fewstep.bench.quality import SAME, psnr, ssim
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
