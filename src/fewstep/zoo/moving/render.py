"""Clips of scenes: the shapes task's antialiased outlines, carried along their paths over a still background."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewstep.zoo.moving.scenes import COLOURS, FRAMES, Scene, Texture, path
from fewstep.zoo.shapes.render import coverage
from fewstep.zoo.shapes.scenes import IMAGE_SIZE, TONES

Array = NDArray[Any]

_GRID = (np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE].astype(np.float32) + 0.5) / IMAGE_SIZE - 0.5
DEPTH = 0.22  # how far a texture lightens and darkens its tone
# Of every texture: how many plane waves it is the sum of, and their frequencies in cycles a picture.
_WAVES: dict[Texture, tuple[int, tuple[float, float]]] = {
    "graded": (1, (0.3, 0.5)),
    "wavy": (1, (1.5, 3.0)),
    "cloudy": (5, (0.6, 2.2)),
}


def render(scene: Scene, frames: int = FRAMES) -> Array:
    """RGB clip of `scene`, shape (frames, 64, 64, 3), values in [0, 1]."""
    clip = np.repeat(background(scene)[None], frames, axis=0)
    for thing in scene.things:
        x, y = path(thing, frames).T[..., None, None]
        alpha = coverage(thing.shape, x, y, thing.radius)[..., None]
        clip += alpha * (np.array(COLOURS[thing.colour], np.float32) - clip)
    return clip


def background(scene: Scene) -> Array:
    """The scene without its objects, shape (64, 64, 3)."""
    rng = np.random.default_rng(scene.seed)
    count, band = _WAVES[scene.texture]
    angles, frequencies, phases = rng.uniform(0, 2 * np.pi, count), rng.uniform(*band, count), rng.random(count)
    down, across = (frequencies * turned for turned in (np.sin(angles), np.cos(angles)))
    waves = np.sin(2 * np.pi * (np.tensordot(np.stack([down, across], 1), _GRID, 1) + phases[:, None, None]))
    shade = 1 + DEPTH * waves.sum(0) / np.sqrt(count)
    return np.asarray(shade[..., None] * np.array(TONES[scene.tone]), np.float32)
