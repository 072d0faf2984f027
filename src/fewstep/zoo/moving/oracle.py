"""Reads a clip of the `moving-shapes` task back into objects and their movement, by colour and geometry: no network.

In every frame, regions more vivid than any background are objects. A region's *tint*, the part of a pixel's colour
that is orthogonal to grey, less that of the background, along the tint of an object's colour, says how much of the
pixel the object covers. The object of one colour is followed through the frames: it must be there in each of them, in
one shape, and its centre must move along one axis, evenly at first, without jumps, turning round at the borders only.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations, product

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from fewstep.errors import InputError, bad_value
from fewstep.zoo.moving.scenes import (
    COLOURS,
    DIRECTIONS,
    FRAMES,
    RADII,
    SHAPES,
    Ask,
    Direction,
    Scene,
    Speed,
    ThingAsk,
    path,
)
from fewstep.zoo.shapes.render import coverage
from fewstep.zoo.shapes.scenes import IMAGE_SIZE, Colour, Shape

Array = NDArray[np.float32]

VIVID = 0.25  # chroma (largest less smallest channel) of an object's pixels; no background reaches 0.21
SPECK = 12  # pixels; a smaller vivid region is noise
HUE = 0.93  # least cosine between an object's tint and its colour's; the closest two colours are at 0.72
MISFIT = 0.16  # most of an outline's energy that may be unexplained, the mean over the frames
STRETCH = 1.5  # pixels by which a radius may lie outside of `RADII`
SIZES = tuple(float(size) for size in np.arange(RADII[0] - STRETCH, RADII[1] + STRETCH + 0.01, 0.5))  # tried radii
BLURS = (0.5, 1.0)  # of outlines, in pixels: a clip may be slightly blurred
PATCH = 28  # pixels around an object that its outlines are compared with
FIRST = 7  # steps from frame to frame that tell the first direction and the speed: no object turns round in them
UNEVEN = 0.5  # pixels a frame by which a step may differ from the median of the first ones
EVEN = 6  # of the first steps that must not differ by more
JUMP = 2.0  # pixels by which no step of a clip may be longer than that median
TURN = 5.0  # pixels between an object that turns round and the border, at most
DRIFT = 3.0  # pixels by which an object may leave its line
PACES: dict[Speed, tuple[float, float]] = {"slow": (0.5, 1.4), "fast": (1.5, 2.6)}  # median steps, in pixels a frame
STILL = 0.015  # most that a background's pixels may be from their means over the frames, on average


@dataclass(frozen=True)
class Mover:
    """An object as it was seen; `shape`, `direction` and `speed` are None where the clip is not clear about them.

    `centres` has shape (17, 2), x before y, in pixels.
    """

    colour: Colour
    shape: Shape | None
    direction: Direction | None
    speed: Speed | None
    centres: Array


@dataclass(frozen=True)
class Reading:
    """What a clip shows.

    Attributes:
        things: the objects that are there in every frame.
        unreadable: the most vivid regions in one frame that belong to none of them.
        flicker: how far the background's pixels are from their means over the frames, on average.
    """

    things: tuple[Mover, ...]
    unreadable: int
    flicker: float

    @property
    def still(self) -> bool:
        return self.flicker <= STILL


def read(clip: NDArray[np.floating]) -> Reading:
    """What `clip` shows.

    Args:
        clip: shape (17, 64, 64, 3), RGB in [0, 1].

    Raises:
        InputError: another shape, or values that are not finite.
    """
    clip = _checked(clip)
    vivid = clip.max(-1) - clip.min(-1) > VIVID
    ground = ~ndimage.binary_dilation(vivid, np.ones((1, 3, 3)), iterations=2)
    tint = _tint(clip, ground)
    seen = [_regions(frame, own) for frame, own in zip(tint, vivid, strict=True)]
    colours = [colour for colour in COLOURS if all(colour in regions for regions, _ in seen)]
    things = tuple(_followed(colour, [regions[colour] for regions, _ in seen], tint) for colour in colours)
    return Reading(things, max(count - len(things) for _, count in seen), _flicker(clip, ground))


def answers(ask: Ask, reading: Reading) -> bool:
    """Whether the clip shows exactly what was asked, and no other object, on a background that does not move."""
    if reading.unreadable or len(reading.things) != len(ask.things) or not reading.still:
        return False
    return any(
        all(want.met_by(thing) for want, thing in zip(ask.things, order, strict=True))
        for order in permutations(reading.things)
    )


def still_answers(ask: Ask, reading: Reading) -> bool:
    """Whether a piece of a longer video shows what was asked at its beginning: an object may have turned round at a
    border, so it moves to and fro along the line of its direction."""
    if reading.unreadable or len(reading.things) != len(ask.things) or not reading.still:
        return False
    return any(
        all(_keeps(want, thing) for want, thing in zip(ask.things, order, strict=True))
        for order in permutations(reading.things)
    )


def _keeps(want: ThingAsk, thing: Mover) -> bool:
    axis = 0 if DIRECTIONS[want.direction][0] else 1
    along, across = thing.centres[:, axis], thing.centres[:, 1 - axis]
    pace = float(np.median(np.abs(np.diff(along))))
    return (
        (thing.shape, thing.colour) == (want.shape, want.colour)
        and want.speed in (None, _speed(pace))
        and pace >= PACES["slow"][0]
        and _sound(along, across, pace)
    )


def matches(scene: Scene, reading: Reading) -> bool:
    """Whether the clip was read as all that `scene` is: every object, to a pixel on average, and no other."""
    if reading.unreadable or len(reading.things) != len(scene.things) or not reading.still:
        return False
    by_colour = {thing.colour: thing for thing in reading.things}
    return all(
        (seen := by_colour.get(thing.colour)) is not None
        and (seen.shape, seen.direction, seen.speed) == (thing.shape, thing.direction, thing.speed)
        and float(np.abs(seen.centres - path(thing)).mean()) < 1
        for thing in scene.things
    )


def _checked(clip: NDArray[np.floating]) -> Array:
    clip = np.asarray(clip)
    if clip.shape != (FRAMES, IMAGE_SIZE, IMAGE_SIZE, 3):
        raise InputError(bad_value("clip", "the moving-shapes oracle", "an array of shape (17, 64, 64, 3)", clip.shape))
    if not np.isfinite(clip).all():
        raise InputError(bad_value("clip", "the moving-shapes oracle", "finite, in [0, 1]", "NaN or infinity"))
    return clip.astype(np.float32, copy=False)


# ---------------------------------------------------------------------------------------------------------------------
# Regions


def _tint(clip: Array, ground: NDArray[np.bool_]) -> Array:
    """The colour of every pixel less its grey, and less what the background has of it, (17, 64, 64, 3)."""
    tint = clip - clip.mean(-1, keepdims=True)
    own = np.median(tint[ground], axis=0) if ground.any() else np.zeros(3, np.float32)
    return np.asarray(tint - own, np.float32)


_TINTS = {name: np.array(rgb, np.float32) - np.float32(np.mean(rgb)) for name, rgb in COLOURS.items()}


@dataclass(frozen=True)
class _Region:
    """A vivid region of one frame: its pixels, (64, 64), and those that are its soft edge too."""

    core: NDArray[np.bool_]
    wide: NDArray[np.bool_]


def _regions(tint: Array, vivid: NDArray[np.bool_]) -> tuple[dict[Colour, _Region], int]:
    """The regions of one frame by colour, as far as they have a known one that no other has, and how many there are."""
    labels, count = ndimage.label(vivid, np.ones((3, 3)))
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    kept = [label for label, size in enumerate(sizes, start=1) if size >= SPECK]
    found: dict[Colour, _Region] = {}
    for label in kept:
        core = labels == label
        colour = _colour(tint[core].mean(0))
        if colour is not None and colour not in found:
            found[colour] = _Region(core, ndimage.binary_dilation(core, np.ones((3, 3)), iterations=2))
    return found, len(kept)


def _colour(tint: Array) -> Colour | None:
    def likeness(colour: Colour) -> float:
        true = _TINTS[colour]
        return float(tint @ true / (np.linalg.norm(tint) * np.linalg.norm(true) + 1e-6))

    best = max(COLOURS, key=likeness)
    return best if likeness(best) >= HUE else None


def _flicker(clip: Array, ground: NDArray[np.bool_]) -> float:
    weight = ground.astype(np.float32)[..., None]
    mean = (clip * weight).sum(0) / np.maximum(weight.sum(0), 1)
    return float(np.abs(clip - mean).mean(-1)[ground].mean()) if ground.any() else 1.0


# ---------------------------------------------------------------------------------------------------------------------
# Objects


def _followed(colour: Colour, regions: list[_Region], tint: Array) -> Mover:
    true = _TINTS[colour]
    wide = np.stack([region.wide for region in regions])
    cover = np.clip((tint @ true) / float(true @ true), 0, 1.2) * wide
    centres, shape = _fitted(np.asarray(cover, np.float32))
    direction, speed = _moved(centres)
    return Mover(colour, shape, direction, speed, centres)


def _fitted(cover: Array) -> tuple[Array, Shape | None]:
    """Centres, and the shape whose outline, in one size, explains the covered pixels of all frames best."""
    middle = _middles(cover)
    corner = np.round(middle).astype(int) - PATCH // 2
    patches = _cut(cover, corner)
    within = middle - corner.astype(np.float32)
    fits = {
        (shape, size, blur): _misfit(patches, _outline(shape, size, blur, within))
        for shape, size, blur in product(SHAPES, SIZES, BLURS)
    }
    shape, size, _ = best = min(fits, key=lambda key: fits[key])
    return middle - _offset(shape, size), shape if fits[best] <= MISFIT else None


def _misfit(cover: Array, outline: Array) -> float:
    """The part of an outline's energy that is left over, the mean over the frames."""
    left = ((cover - outline) ** 2).sum((1, 2))
    return float((left / (outline**2).sum((1, 2))).mean())


def _middles(cover: Array) -> Array:
    """The centre of mass in every frame, (17, 2), x before y, in pixels."""
    weight = cover / np.maximum(cover.sum((1, 2), keepdims=True), 1e-6)
    places = np.arange(IMAGE_SIZE, dtype=np.float32) + 0.5
    return np.stack([weight.sum(1) @ places, weight.sum(2) @ places], 1)


def _cut(cover: Array, corners: NDArray[np.int_]) -> Array:
    """The square of every frame, `PATCH` pixels wide, whose upper left corner (x, y) it is; 0 outside of the frame."""
    padded = np.pad(cover, ((0, 0), (PATCH, PATCH), (PATCH, PATCH)))
    starts = corners + PATCH
    return np.stack([f[y : y + PATCH, x : x + PATCH] for f, (x, y) in zip(padded, starts, strict=True)])


def _outline(shape: Shape, size: float, blur: float, middle: Array) -> Array:
    """A slightly blurred shape about its centre of mass in every frame, (17, PATCH, PATCH)."""
    x, y = (middle - _offset(shape, size)).T[..., None, None]
    drawn = coverage(shape, x, y, size, (slice(0, PATCH), slice(0, PATCH)))
    return np.asarray(ndimage.gaussian_filter(drawn, (0, blur, blur)), np.float32)


def _offset(shape: Shape, size: float) -> Array:
    """From the place of a shape to its centre of mass: a triangle's lies lower, at two thirds of its height."""
    return np.array([0, size / 3 if shape == "triangle" else 0], np.float32)


# ---------------------------------------------------------------------------------------------------------------------
# Movement


def _moved(centres: Array) -> tuple[Direction | None, Speed | None]:
    """The first direction and the speed; both None where the movement is not clear, the speed between two of them."""
    first = np.diff(centres[: FIRST + 1], axis=0)
    axis = int(np.abs(first.sum(0)).argmax())
    pace = float(np.median(np.abs(first[:, axis])))
    along, across = centres[:, axis], centres[:, 1 - axis]
    even = (np.abs(np.abs(first[:, axis]) - pace) <= UNEVEN).sum() >= EVEN
    if pace < PACES["slow"][0] or not even or not _sound(along, across, pace):
        return None, None
    direction = next(name for name, way in DIRECTIONS.items() if way[axis] * first[:, axis].sum() > 0)
    return direction, _speed(pace)


def _speed(pace: float) -> Speed | None:
    return next((name for name, (low, high) in PACES.items() if low <= pace <= high), None)


def _sound(along: Array, across: Array, pace: float) -> bool:
    """Whether centres keep to one line without a jump and turn at borders only.

    What happens to the speed at a border is not judged: no prompt says it.
    """
    steps = np.diff(along)
    turns = np.flatnonzero(np.sign(steps[1:]) * np.sign(steps[:-1]) < 0) + 1
    room = np.minimum(along, IMAGE_SIZE - along)[turns] - RADII[1]
    return bool(np.ptp(across) <= DRIFT and np.abs(steps).max() <= pace + JUMP and (room <= TURN).all())
