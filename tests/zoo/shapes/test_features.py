"""The features: what they must tell apart, and in which order."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from fewstep.errors import InputError
from fewstep.zoo.metrics import frechet
from fewstep.zoo.shapes.features import features
from fewstep.zoo.shapes.render import render
from fewstep.zoo.shapes.scenes import sample_scene

Images = NDArray[np.float32]
N = 192


def drawn(first: int) -> Images:
    return np.stack([render(sample_scene(np.random.default_rng((first, i)))) for i in range(N)])


@pytest.fixture(scope="module")
def real() -> Images:
    return drawn(1)


@pytest.fixture(scope="module")
def reference() -> NDArray[np.float64]:
    return features(drawn(2))


def distances(sets: list[Images], reference: NDArray[np.float64]) -> list[float]:
    return [frechet(features(images), reference) for images in sets]


def test_real_pictures_are_centred_with_about_unit_scale(real: Images) -> None:
    values = features(real)
    assert values.shape == (N, 44)
    assert np.abs(values.mean(0)).max() < 0.35
    spread = values.std(0)
    specks = 34  # real pictures have none
    assert spread[specks] == 0
    assert np.delete(spread, specks).min() > 0.4
    assert spread.max() < 1.3


def test_one_picture_does_not_change_anothers_features(real: Images) -> None:
    np.testing.assert_allclose(features(real[:3])[1], features(real[1:2])[0], atol=1e-5)


def test_the_worse_the_blur_the_further(real: Images, reference: NDArray[np.float64]) -> None:
    blurred = [real, *(ndimage.gaussian_filter(real, (0, s, s, 0)) for s in (0.5, 1.0, 2.0))]
    a, b, c, d = distances(blurred, reference)
    assert a < b < c / 2
    assert c < d / 2


def test_the_paler_the_further(real: Images, reference: NDArray[np.float64]) -> None:
    grey = real.mean(-1, keepdims=True)
    a, b, c = distances([real, 0.8 * real + 0.2 * grey, 0.6 * real + 0.4 * grey], reference)
    assert 2 * a < b < c / 2


def test_the_more_two_pictures_are_mixed_the_further(real: Images, reference: NDArray[np.float64]) -> None:
    a, b, c = distances([real, 0.8 * real + 0.2 * real[::-1], 0.5 * (real + real[::-1])], reference)
    assert 2 * a < b < c / 2


def test_missing_objects_are_seen(real: Images, reference: NDArray[np.float64]) -> None:
    one = np.stack([image for image in real if objects_in(image) == 1])
    alone = frechet(features(one), reference)
    assert alone > 2 * frechet(features(real[: len(one)]), reference)


def objects_in(image: Images) -> int:
    """Vivid regions, counted without the features."""
    vivid = image.max(-1) - image.min(-1) > 0.24
    return int(ndimage.label(vivid, np.ones((3, 3)))[1])


def test_another_shape_is_refused() -> None:
    with pytest.raises(InputError, match="images"):
        features(np.zeros((2, 32, 32, 3)))
