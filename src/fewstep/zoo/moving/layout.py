"""What every token of a clip shows: the target for reading a scene from inside the transformer as it learns.

Why it is asked: see `fewstep.zoo.shapes.layout`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewstep.zoo.moving.scenes import COLOURS, DIRECTIONS, FRAMES, SHAPES, SPEEDS, TEXTURES, Scene, Thing, path
from fewstep.zoo.shapes.render import coverage
from fewstep.zoo.shapes.scenes import IMAGE_SIZE, TONES

Array = NDArray[Any]

GRID = IMAGE_SIZE // 8  # tokens along one side
TIMES = 1 + (FRAMES - 1) // 4
TOKENS = TIMES * GRID * GRID
KINDS = (SHAPES, tuple(COLOURS), tuple(DIRECTIONS), tuple(SPEEDS))
COLUMNS = sum(map(len, KINDS)) + 4 + len(TONES) + len(TEXTURES)
_CENTRES = (np.arange(GRID) + 0.5) * 8  # of the tokens, in pixels
# The frames of each token: the first one alone, then four by four; the first is there four times.
_FRAMES = np.concatenate([np.zeros(4, int), np.arange(1, FRAMES)]).reshape(TIMES, 4)


def layout(scene: Scene) -> Array:
    """One row a token, shape (320, `COLUMNS`).

    How much of the token, on the mean of its frames, the disc around each object covers, in the columns of its shape,
    colour, first direction and speed and, times the way to the object's centre in radii and the way that it moves in
    its frames, in four more; then the background's tone and texture.
    """
    shown = sum((_columns(thing) for thing in scene.things), np.zeros((TIMES, GRID, GRID, COLUMNS), np.float32))
    ground = [*_one_hot(tuple(TONES), scene.tone), *_one_hot(TEXTURES, scene.texture)]
    shown[..., -len(ground) :] = ground
    return shown.reshape(TOKENS, COLUMNS)


def _columns(thing: Thing) -> Array:
    centres = path(thing)
    x, y = centres.T[..., None, None]
    covered = coverage("circle", x, y, thing.radius).reshape(FRAMES, GRID, 8, GRID, 8).mean((2, 4))
    covered = covered[_FRAMES].mean(1)
    kinds = [hot for kind, own in zip(KINDS, _named(thing), strict=True) for hot in _one_hot(kind, own)]
    middle = centres[_FRAMES].mean(1)
    moves = np.gradient(centres, axis=0)[_FRAMES].mean(1)
    shown = np.zeros((TIMES, GRID, GRID, COLUMNS), np.float32)
    end = len(kinds)
    shown[..., :end] = kinds
    shown[..., end] = ((middle[:, :1] - _CENTRES) / thing.radius)[:, None, :]
    shown[..., end + 1] = ((middle[:, 1:] - _CENTRES) / thing.radius)[:, :, None]
    shown[..., end + 2 : end + 4] = moves[:, None, None, :]
    shown *= covered[..., None]
    return shown


def _named(thing: Thing) -> tuple[str, str, str, str]:
    return thing.shape, thing.colour, thing.direction, thing.speed


def _one_hot(options: tuple[str, ...], chosen: str) -> list[float]:
    return [float(option == chosen) for option in options]
