"""What every image token of a scene shows: the target for reading a scene from inside the transformer as it learns.

Training a diffusion transformer goes faster when its middle layers are also asked for what is in the clean picture
(REPA, arXiv 2410.06940, which takes the answer from a vision encoder). Here the scene itself is the answer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewstep.zoo.shapes.render import coverage
from fewstep.zoo.shapes.scenes import COLOURS, FILLS, IMAGE_SIZE, SHAPES, SIZES, TEXTURES, TONES, Scene, Thing

Array = NDArray[Any]

GRID = IMAGE_SIZE // 8  # image tokens along one side
_CENTRES = (np.arange(GRID) + 0.5) * 8  # of the tokens, in pixels
_KINDS = (SHAPES, tuple(COLOURS), FILLS, SIZES)
COLUMNS = sum(map(len, _KINDS)) + 2 + len(TONES) + len(TEXTURES)


def layout(scene: Scene) -> Array:
    """One row a token, shape (64, `COLUMNS`).

    How much of the token the disc around each object covers, in the columns of its shape, colour, fill and size and,
    times the way to the object's centre in radii, in two more; then the background's tone and texture.
    """
    things = sum((_columns(thing) for thing in scene.things), np.zeros((GRID, GRID, COLUMNS), np.float32))
    ground = [*_one_hot(tuple(TONES), scene.tone), *_one_hot(TEXTURES, scene.texture)]
    things[..., -len(ground) :] = ground
    return things.reshape(GRID * GRID, COLUMNS)


def _columns(thing: Thing) -> Array:
    covered = coverage("circle", thing.x, thing.y, thing.radius).reshape(GRID, 8, GRID, 8).mean((1, 3))
    kinds = [hot for kind, own in zip(_KINDS, _named(thing), strict=True) for hot in _one_hot(kind, own)]
    across = (thing.x - _CENTRES)[None, :, None] / thing.radius
    down = (thing.y - _CENTRES)[:, None, None] / thing.radius
    shown = np.zeros((GRID, GRID, COLUMNS), np.float32)
    shown[..., : len(kinds)] = kinds
    shown[..., len(kinds) : len(kinds) + 2] = np.concatenate(np.broadcast_arrays(across, down), -1)
    shown *= covered[..., None]
    return shown


def _named(thing: Thing) -> tuple[str, str, str, str]:
    return thing.shape, thing.colour, thing.fill, thing.size


def _one_hot(options: tuple[str, ...], chosen: str) -> list[float]:
    return [float(option == chosen) for option in options]
