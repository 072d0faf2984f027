"""Pictures of scenes: signed distances, one pixel of smoothing at every edge."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewstep.zoo.shapes.scenes import COLOURS, IMAGE_SIZE, TONES, Fill, Scene, Shape, Texture, Thing

Array = NDArray[Any]

_Y, _X = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE].astype(np.float32) + 0.5  # pixel centres
SHADE = 0.45  # the dark bands of a striped or checked object: its colour times this
PERIOD = 8.0  # of stripes and checks, in pixels
RING_WIDTH = 0.42  # as a part of the radius
EVERYWHERE = (slice(0, IMAGE_SIZE), slice(0, IMAGE_SIZE))
ARM = 0.34  # half the width of a cross's arms, as a part of the radius


def render(scene: Scene) -> Array:
    """RGB picture of `scene`, shape (64, 64, 3), values in [0, 1]."""
    image = background(scene)
    for thing in scene.things:
        alpha = coverage(thing.shape, thing.x, thing.y, thing.radius)[..., None]
        image = image * (1 - alpha) + _paint(thing) * alpha
    return image


def coverage(shape: Shape, x: float, y: float, radius: float, window: tuple[slice, slice] = EVERYWHERE) -> Array:
    """How much of each pixel the shape covers, shape (64, 64) or that of `window`, values in [0, 1]."""
    rows, columns = window
    return np.clip(0.5 - _signed_distance(shape, _X[:1, columns] - x, _Y[rows, :1] - y, radius), 0.0, 1.0)


def _signed_distance(shape: Shape, dx: Array, dy: Array, r: float) -> Array:
    """Distance to the outline in pixels, negative inside; exact only near the outline, where it is used."""
    distance: Array
    match shape:
        case "circle":
            distance = np.hypot(dx, dy) - r
        case "ring":
            half = r * RING_WIDTH / 2
            distance = np.abs(np.hypot(dx, dy) - (r - half)) - half
        case "square":
            distance = np.maximum(np.abs(dx), np.abs(dy)) - 0.88 * r
        case "diamond":
            distance = (np.abs(dx) + np.abs(dy) - r) / np.float32(np.sqrt(2.0))
        case "triangle":  # point up, base 2r, height 2r
            distance = np.maximum(dy - r, (2 * np.abs(dx) - (dy + r)) / np.float32(np.sqrt(5.0)))
        case "cross":
            arm = r * ARM
            long, wide = np.maximum(np.abs(dx), np.abs(dy)), np.minimum(np.abs(dx), np.abs(dy))
            distance = np.maximum(long - r, wide - arm)
    return distance


def pattern(fill: Fill, x: float, y: float) -> Array:
    """1 where an object shows its colour, `SHADE` where it is darkened; shape (64, 64)."""
    rows = np.floor(2 * (_Y - y) / PERIOD).astype(int) % 2
    columns = np.floor(2 * (_X - x) / PERIOD).astype(int) % 2
    dark = {"solid": np.zeros_like(rows), "striped": rows, "checked": rows ^ columns}[fill]
    shade: Array = np.where(dark == 1, np.float32(SHADE), np.float32(1.0))
    return shade


def _paint(thing: Thing) -> Array:
    return pattern(thing.fill, thing.x, thing.y)[..., None] * np.array(COLOURS[thing.colour], dtype=np.float32)


def background(scene: Scene) -> Array:
    """The scene without its objects, shape (64, 64, 3): its tone, lightened and darkened by up to a quarter."""
    rng = np.random.default_rng(scene.seed)
    shade = 1 + 0.25 * _texture(scene.texture, rng)
    return shade[..., None] * np.array(TONES[scene.tone], dtype=np.float32)


def _texture(texture: Texture, rng: np.random.Generator) -> Array:
    """A field in [-1, 1], shape (64, 64)."""
    u, v = _X / IMAGE_SIZE, _Y / IMAGE_SIZE
    angle = rng.uniform(0, 2 * np.pi)
    along = (np.cos(angle) * (u - 0.5) + np.sin(angle) * (v - 0.5)).astype(np.float32)
    field: Array
    match texture:
        case "graded":
            field = np.clip(1.6 * along, -1, 1)
        case "wavy":
            field = np.sin(2 * np.pi * (rng.uniform(4, 7) * along + rng.uniform())).astype(np.float32)
        case "tiled":
            side = rng.uniform(7, 11)
            a, b = rng.uniform(0, side, 2)
            odd = (np.floor((_X + a) / side) + np.floor((_Y + b) / side)) % 2
            field = np.where(odd == 1, np.float32(0.8), np.float32(-0.8))
        case "cloudy":
            field = np.zeros_like(u)
            for _ in range(6):
                fx, fy = rng.uniform(-3, 3, 2)
                field += np.sin(2 * np.pi * (fx * u + fy * v + rng.uniform())).astype(np.float32)
            field = np.clip(field / 3, -1, 1)
    return field
