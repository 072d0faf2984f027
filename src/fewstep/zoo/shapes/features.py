"""Forty-four numbers a picture, by image statistics alone, for the Fréchet distance between sets of pictures.

They are chosen for what sampling in too few steps spoils: detail in several bands of frequency, the sharpness of edges,
saturation and hue, how many objects there are and where, and the background's tone and texture. Each is centred and
divided by a fixed constant, so that over real pictures it has about unit scale and one unit means the same in every
comparison. The finest detail and the edges are divided by twice their spread over real pictures: an autoencoder's own
slight blur would otherwise outweigh everything that sampling does.

The Fréchet distance between real pictures and 1000 other real ones is about 4.0 for 64 of them, 1.2 for 256 and 0.4 for
1000: the floor under every figure of that many samples.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from fewstep.errors import InputError, bad_value
from fewstep.zoo.shapes.scenes import COLOURS, IMAGE_SIZE

Array = NDArray[np.float32]

LUMA = np.array([0.299, 0.587, 0.114])
VIVID = 0.22  # chroma (largest less smallest channel) of every object; no background reaches it
SPECK = 12  # pixels; a smaller vivid region is no object
_BLURS = (0.6, 1.2, 2.4, 4.8)  # sigmas in pixels, the borders of the bands of frequency
_GRID = (np.arange(IMAGE_SIZE) + 0.5) / IMAGE_SIZE - 0.5

# Mean and divisor of every number, over 2000 real pictures.
_CENTRE, _SCALE = np.array(
    [
        # light
        (0.338, 0.118), (0.0953, 0.0365),
        # casts, spread of saturation, vivid areas
        (0.00806, 0.0771), (-0.0123, 0.0735), (0.189, 0.0576), (0.341, 0.0817), (0.295, 0.0841), (0.247, 0.105),
        (0.109, 0.129),
        # areas of the eight colours
        (0.0558, 0.109), (0.061, 0.106), (0.0517, 0.105), (0.048, 0.11),
        (0.0459, 0.108), (0.0475, 0.108), (0.0462, 0.106), (0.0468, 0.0992),
        # detail of objects, fine to coarse; the finest counts half
        (-3.48, 1.26), (-3.34, 0.605), (-3.13, 0.577), (-3.17, 0.595),
        # detail of the background
        (-5.15, 0.706), (-4.88, 0.703), (-4.26, 0.619), (-3.9, 0.517),
        # detail of chroma, the two finest count half; the steepest edges, which count half too
        (-3.59, 0.549), (-3.44, 0.535), (-3.17, 0.283), (-3.0, 0.319), (0.436, 0.174), (0.291, 0.176),
        # objects: number, mean and spread of size, specks (real pictures have none), place, extent
        (1.88, 0.92), (16.6, 3.46), (1.09, 1.61), (0, 1),
        (-0.00363, 0.135), (0.00809, 0.136), (0.149, 0.071), (0.15, 0.071),
        # background: light, warmth, contrast, slope, direction
        (0.322, 0.132), (0.00269, 0.0861), (0.132, 0.0302), (0.0792, 0.0622), (0.00544, 0.375),
    ]
).T  # fmt: skip


def features(images: NDArray[np.floating]) -> NDArray[np.float64]:
    """Statistics of each picture, shape (n, d), float64, about unit scale over real pictures.

    Args:
        images: shape (n, 64, 64, 3), RGB in [0, 1].

    Raises:
        InputError: another shape.
    """
    batch = np.asarray(images, dtype=np.float32)
    if batch.ndim != 4 or batch.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE, 3):
        raise InputError(bad_value("images", "the shapes features", "an array of shape (n, 64, 64, 3)", batch.shape))
    return np.asarray((raw_features(batch) - _CENTRE) / _SCALE)


def raw_features(images: Array) -> NDArray[np.float64]:
    """`features` before they are centred and scaled."""
    luma = images @ LUMA.astype(np.float32)
    chroma = images.max(-1) - images.min(-1)
    vivid = np.clip((chroma - VIVID) / 0.1 + 0.5, 0, 1)
    parts = (_light(luma), _colour(images, chroma, vivid), _detail(luma, chroma, vivid), _objects(vivid))
    return np.concatenate([*parts, _ground(images, luma, vivid)], axis=1).astype(np.float64)


def _light(luma: Array) -> Array:
    return np.stack([luma.mean((1, 2)), luma.std((1, 2))], 1)


def _colour(images: Array, chroma: Array, vivid: Array) -> Array:
    """Colour casts, the spread of saturation, and how much of each colour there is."""
    red, green, blue = (images[..., i].mean((1, 2)) for i in range(3))
    strong = [np.sqrt((chroma > level).mean((1, 2))) for level in (0.22, 0.4, 0.6, 0.8)]
    centred = images - images.mean(-1, keepdims=True)
    hues = np.array(list(COLOURS.values()), dtype=np.float32)
    hues -= hues.mean(-1, keepdims=True)
    hues /= np.linalg.norm(hues, axis=-1, keepdims=True)
    likeness = centred @ hues.T / (np.linalg.norm(centred, axis=-1, keepdims=True) + 1e-3)
    shares = (np.exp(40 * (likeness - 1)) * vivid[..., None]).mean((1, 2))
    return np.stack([red - green, blue - (red + green) / 2, chroma.std((1, 2)), *strong, *np.sqrt(shares).T], 1)


def _detail(luma: Array, chroma: Array, vivid: Array) -> Array:
    """Energy in bands of frequency on objects and on the background, of chroma, and the steepest edges."""
    ground = 1 - ndimage.maximum_filter(vivid, (1, 5, 5))
    columns = []
    for field, weights in ((luma, (vivid, ground)), (chroma, (np.ones_like(vivid),))):
        blurred = [field, *(ndimage.gaussian_filter(field, (0, sigma, sigma)) for sigma in _BLURS)]
        for weight in weights:
            area = weight.sum((1, 2)) + 1
            for fine, coarse in pairwise(blurred):
                columns.append(np.log(np.sqrt(((fine - coarse) ** 2 * weight).sum((1, 2)) / area) + 3e-3))
    steep = np.hypot(*np.gradient(chroma, axis=(1, 2))).reshape(len(chroma), -1)
    steep = np.sort(steep, axis=1)[:, ::-1]
    columns += [steep[:, :40].mean(1), steep[:, 40:200].mean(1)]
    return np.stack(columns, 1)


def _objects(vivid: Array) -> Array:
    """How many vivid regions there are, of what sizes, and where."""
    return np.stack([_regions(picture > 0.5) for picture in vivid])


def _regions(mask: NDArray[np.bool_]) -> Array:
    labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    objects = np.sqrt(areas[areas >= SPECK]) if (areas >= SPECK).any() else np.zeros(1)
    weight = mask / max(mask.sum(), 1)
    across, down = weight.sum(0), weight.sum(1)
    x, y = across @ _GRID, down @ _GRID
    spread = (np.sqrt(across @ (_GRID - x) ** 2), np.sqrt(down @ (_GRID - y) ** 2))
    specks = np.log1p((areas < SPECK).sum())
    return np.array([(areas >= SPECK).sum(), objects.mean(), objects.std(), specks, x, y, *spread])


def _ground(images: Array, luma: Array, vivid: Array) -> Array:
    """The background's light, warmth, contrast, slope, and which way its texture runs."""
    ground = 1 - ndimage.maximum_filter(vivid, (1, 5, 5))
    weight = (ground / (ground.sum((1, 2), keepdims=True) + 1)).astype(np.float32)
    light = (luma * weight).sum((1, 2))
    warmth = ((images[..., 0] - images[..., 2]) * weight).sum((1, 2))
    deviation = (luma - light[:, None, None]) * weight
    contrast = np.sqrt((deviation * (luma - light[:, None, None])).sum((1, 2))) / (light + 0.05)
    slope = np.hypot((deviation * _GRID).sum((1, 2)), (deviation * _GRID[:, None]).sum((1, 2))) / (light + 0.05)
    down, across = np.gradient(luma, axis=(1, 2))
    steep, flat = ((down**2 * weight).sum((1, 2)), (across**2 * weight).sum((1, 2)))
    return np.stack([light, warmth, contrast, np.sqrt(slope), (steep - flat) / (steep + flat + 1e-5)], 1)
