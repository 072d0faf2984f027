"""The features: what they must tell apart, and in which order."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from fewstep.errors import InputError
from fewstep.zoo.metrics import frechet
from fewstep.zoo.moving.features import features
from fewstep.zoo.moving.render import render
from fewstep.zoo.moving.scenes import sample_scene

Clips = NDArray[np.float32]
N = 64


def drawn(first: int) -> Clips:
    return np.stack([render(sample_scene(np.random.default_rng((first, i)))) for i in range(N)])


@pytest.fixture(scope="module")
def real() -> Clips:
    return drawn(1)


@pytest.fixture(scope="module")
def reference() -> NDArray[np.float64]:
    return features(drawn(2))


def test_real_clips_are_centred_with_about_unit_scale(real: Clips) -> None:
    values = features(real)
    assert values.shape == (N, 32)
    assert np.abs(values.mean(0)).max() < 0.45
    spread = values.std(0)
    never = [4, 5, 19, 22]  # flicker, slow change, a change of number, specks
    assert (spread[never] == 0).all()
    assert np.delete(spread, never).min() > 0.1
    assert spread.max() < 1.5


def test_one_clip_does_not_change_anothers_features(real: Clips) -> None:
    np.testing.assert_allclose(features(real[:3])[1], features(real[1:2])[0], atol=1e-6)


def test_what_is_worse_is_further(real: Clips, reference: NDArray[np.float64]) -> None:
    rng = np.random.default_rng(0)
    worse = {
        "a little blurred": (ndimage.gaussian_filter(real, (0, 0, 0.6, 0.6, 0)), 1.0),
        "blurred": (ndimage.gaussian_filter(real, (0, 0, 1.5, 1.5, 0)), 3.0),
        "blurred in time": (ndimage.gaussian_filter(real, (0, 1.5, 0, 0, 0)), 1.2),
        "flickering": (np.clip(real + rng.normal(0, 0.03, (N, 17, 1, 1, 1)), 0, 1), 1.5),
        "standing still": (np.repeat(real[:, :1], 17, 1), 2.0),
        "in another order": (real[:, rng.permutation(17)], 2.0),
        "pale": (0.5 * real + 0.25, 2.0),
    }
    at_best = frechet(features(real), reference)
    found = {name: frechet(features(clips), reference) / at_best for name, (clips, _) in worse.items()}
    assert [name for name, (_, least) in worse.items() if found[name] <= least] == [], found
    assert found["a little blurred"] < found["blurred"]


@pytest.mark.parametrize("shape", [(17, 64, 64, 3), (2, 9, 64, 64, 3)])
def test_what_are_no_clips_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="clips"):
        features(np.zeros(shape))
