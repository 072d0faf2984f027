"""Thirty-two numbers a clip, by statistics of its pixels alone, for the Fréchet distance between sets of clips.

They are chosen for what sampling in too few steps spoils: detail and edges, colours, how many objects there are and
where, how evenly they move, whether they keep their size, and whether the background is still. Each is centred and
divided by a fixed constant, so that over real clips it has about unit scale and one unit means the same in every
comparison. What real clips hardly have, flicker and change of size, is divided by what the eye begins to see.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from fewstep.errors import InputError, bad_value
from fewstep.zoo.moving.oracle import SPECK, VIVID
from fewstep.zoo.moving.scenes import COLOURS, FRAMES
from fewstep.zoo.shapes.scenes import IMAGE_SIZE

Array = NDArray[np.float32]

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_GRID = ((np.arange(IMAGE_SIZE) + 0.5) / IMAGE_SIZE - 0.5).astype(np.float32)
_ROUND = np.ones((1, 5, 5), bool)

# Mean and divisor of every number, over 2000 real clips.
_CENTRE, _SCALE = np.array(
    [
        # background: light, warmth, contrast, grain, flicker, slow change (real clips have none of the last two)
        (0.322, 0.133), (0.00136, 0.0867), (0.0435, 0.0214), (0.000437, 0.003), (0, 0.005), (0, 0.01),
        # vividness, the six colours
        (0.686, 0.0868), (0.0425, 0.0713), (0.0364, 0.0722), (0.0369, 0.0706), (0.037, 0.0719), (0.0376, 0.0717),
        (0.0411, 0.0694),
        # detail of chroma, fine (counts half) and coarse, first and last edges (they count half), spread of light
        (-3.58, 0.458), (-3.28, 0.265), (0.4, 0.145), (0.401, 0.146), (0.0798, 0.0294),
        # objects: number and its change, size and its change, specks (real clips have neither changes nor specks)
        (1.34, 0.473), (0, 0.3), (15, 2.96), (0.116, 0.3), (0, 0.3),
        # first place, early and late movement, unevenness, change and its spread
        (0.000324, 0.18), (0.00571, 0.175), (0.023, 0.984), (-0.0203, 0.97), (-0.00156, 0.838), (-0.00717, 0.822),
        (-2.73, 0.631), (1.1, 0.582), (0.0569, 0.0841),
    ]
).T  # fmt: skip


def features(clips: NDArray[np.floating]) -> NDArray[np.float64]:
    """Statistics of each clip, shape (n, 32), float64, about unit scale over real clips.

    Args:
        clips: shape (n, 17, 64, 64, 3), RGB in [0, 1].

    Raises:
        InputError: another shape.
    """
    clips = np.asarray(clips)
    if clips.ndim != 5 or clips.shape[1:] != (FRAMES, IMAGE_SIZE, IMAGE_SIZE, 3):
        right = "an array of shape (n, 17, 64, 64, 3)"
        raise InputError(bad_value("clips", "the moving-shapes features", right, clips.shape))
    return np.asarray((raw_features(clips) - _CENTRE) / _SCALE)


def raw_features(clips: NDArray[np.floating]) -> NDArray[np.float64]:
    """`features` before they are centred and scaled."""
    return np.stack([_of_clip(np.asarray(clip, np.float32)) for clip in clips]).astype(np.float64)


def _of_clip(clip: Array) -> Array:
    luma, chroma = clip @ LUMA, clip.max(-1) - clip.min(-1)
    vivid = chroma > VIVID
    ground = ~ndimage.binary_dilation(vivid, _ROUND)
    return np.concatenate(
        [_ground(clip, luma, ground), _colours(clip, vivid), _detail(luma, chroma), _objects(vivid), _movement(chroma)]
    )


def _ground(clip: Array, luma: Array, ground: NDArray[np.bool_]) -> Array:
    """The background: light, warmth, contrast in the first frame, fine grain, flicker, slow change (6)."""
    if not ground.any():
        return np.zeros(6, np.float32)
    first = luma[0][ground[0]] if ground[0].any() else np.zeros(1, np.float32)
    warmth = (clip[..., 0] - clip[..., 2])[ground].mean()
    grain = np.abs(luma - ndimage.uniform_filter(luma, (0, 3, 3)))[ground].mean()
    still, ends = ground[1:] & ground[:-1], ground[0] & ground[-1]
    flicker = np.abs(np.diff(luma, axis=0))[still].mean() if still.any() else 0
    change = np.abs(luma[-1] - luma[0])[ends].mean() if ends.any() else 0
    return np.array([luma[ground].mean(), warmth, first.std(), grain, flicker, change], np.float32)


def _colours(clip: Array, vivid: NDArray[np.bool_]) -> Array:
    """How vivid the vivid pixels are, and how much of each colour there is (7)."""
    inside = clip[vivid] if vivid.any() else np.zeros((1, 3), np.float32)
    hues = np.array(list(COLOURS.values()), np.float32)
    hues = hues - hues.mean(-1, keepdims=True)
    hues /= np.linalg.norm(hues, axis=-1, keepdims=True)
    centred = inside - inside.mean(-1, keepdims=True)
    likeness = centred @ hues.T / (np.linalg.norm(centred, axis=-1, keepdims=True) + 1e-3)
    shares = np.exp(20 * (likeness - 1)).mean(0) * np.sqrt(vivid.mean())
    return np.array([(inside.max(-1) - inside.min(-1)).mean(), *shares], np.float32)


def _detail(luma: Array, chroma: Array) -> Array:
    """Energy of two bands of chroma, the steepest edges in the first and the last frames, and light (5)."""
    fine, coarse = (ndimage.gaussian_filter(chroma, (0, sigma, sigma)) for sigma in (0.8, 2.0))
    bands = [np.log(band.std() + 3e-3) for band in (chroma - fine, fine - coarse)]
    steep = np.sort(np.hypot(*np.gradient(chroma, axis=(1, 2))).reshape(FRAMES, -1), axis=1)[:, -60:].mean(1)
    return np.array([*bands, steep[:5].mean(), steep[-5:].mean(), luma.std()], np.float32)


def _objects(vivid: NDArray[np.bool_]) -> Array:
    """How many regions a frame has and how that varies, how large they are and how that varies, specks (5)."""
    regions = [_sizes(frame) for frame in vivid]
    counts = np.array([(sizes >= SPECK).sum() for sizes in regions])
    areas = np.array([np.sqrt(sizes[sizes >= SPECK].sum()) for sizes in regions])
    specks = np.log1p(np.mean([(sizes < SPECK).sum() for sizes in regions]))
    return np.array([counts.mean(), counts.std(), areas.mean(), areas.std(), specks], np.float32)


def _sizes(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    return np.bincount(labels.ravel(), minlength=count + 1)[1:]


def _movement(chroma: Array) -> Array:
    """Where the vivid pixels are at first, how they move early and late, how evenly, and how much changes (9)."""
    weight = np.clip(chroma - VIVID, 0, None)
    weight = weight / np.maximum(weight.sum((1, 2), keepdims=True), 1e-6)
    centres = np.stack([weight.sum(1) @ _GRID, weight.sum(2) @ _GRID], 1)
    steps = np.diff(centres, axis=0) * IMAGE_SIZE
    early, late = steps[: FRAMES // 2].mean(0), steps[FRAMES // 2 :].mean(0)
    jerks = np.log(np.abs(np.diff(steps, axis=0)).mean() + 0.03)
    changes = np.abs(np.diff(chroma, axis=0)).mean((1, 2))
    return np.array([*centres[0], *early, *late, jerks, changes.mean() * 100, changes.std() * 100], np.float32)
