"""Reads a picture of the `shapes` task back into objects and background, by geometry and colour: no network.

Light on a background of one tone only moves along that tone's ray in RGB space, whatever the texture does. So the part
of a pixel that is orthogonal to the tone, its *tint*, is zero on the background and linear in how much of an object
covers the pixel: tint = coverage · pattern · tint(colour). Objects are connected regions of tint; which shape, fill,
place and size an object has is the template that explains its tint best. One that no template explains is unreadable.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import permutations, product

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from fewstep.errors import InputError, bad_value
from fewstep.zoo.shapes.ground import Ground, read_ground, read_texture
from fewstep.zoo.shapes.render import PERIOD, coverage, pattern
from fewstep.zoo.shapes.scenes import (
    COLOURS,
    FILLS,
    IMAGE_SIZE,
    RADII,
    SHAPES,
    Ask,
    Colour,
    Fill,
    Scene,
    Shape,
    Size,
    Texture,
    Thing,
    Tone,
    holds,
)

Array = NDArray[np.float32]
_Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels
_Place = tuple[float, float, float]  # x, y, radius in pixels

SMOOTH = (0.25, 0.5, 0.25)  # of picture and templates alike, so that a slightly blurred or noisy picture still fits
FAINT = 0.09  # tint at which a pixel belongs to an object: half of the palest one, a dark band of pink on grey
STAIN = 0.20  # a region whose strongest tint is below this is a stain of the background, not an object
SPECK = 12  # pixels; a smaller region is noise (the smallest object, a small ring, covers 80)
HUE = 0.94  # least cosine between an object's mean tint and its colour's: the closest two colours are at 0.95
MISFIT = 0.13  # most of a template's energy that may be unexplained: real pictures leave 0.01, a missing quarter 0.2
PERFECT = 0.012  # misfit below which no other shape can be meant: the next best leaves more than three times as much
GAIN = (0.70, 1.30)  # how strong an object's colour may be, as a part of the true one
SLACK = 1.2  # pixels by which a radius may be below the smallest of `RADII`, or above the largest
ODD = 0.03  # misfit above which the pattern may be shifted against its object, as no real one is but a drawn one may be
CANDIDATES = 3  # shapes that are worth refining
BLURS = (1, 2)  # how often templates are smoothed, tried in turn
STEPS = (1.0, 0.5, 0.25)  # pixels: one round of refinement each, with slopes taken over this far


@dataclass(frozen=True)
class Reading:
    """What a picture shows. `tone`, `texture` are None where nothing known fits; `unreadable` counts such objects."""

    things: tuple[Thing, ...]
    tone: Tone | None
    texture: Texture | None
    unreadable: int = 0


def read(image: NDArray[np.floating]) -> Reading:
    """What `image` shows.

    Args:
        image: shape (64, 64, 3), RGB in [0, 1].

    Raises:
        InputError: another shape, or values that are not finite.
    """
    image = _checked(image)
    ground = read_ground(image)
    tint = _smooth(ground.tint(image))
    strength = np.hypot(tint[..., 0], tint[..., 1])
    things = [_read_thing(patch, ground) for patch in _patches(tint, strength)]
    return Reading(
        things=tuple(thing for thing in things if thing is not None),
        tone=ground.tone,
        texture=read_texture(image, ground, free=~ndimage.binary_dilation(strength > FAINT / 2, iterations=2)),
        unreadable=things.count(None),
    )


def shown(scene: Scene) -> Reading:
    """What a perfect reader sees in the scene's picture."""
    return Reading(scene.things, scene.tone, scene.texture)


def answers(ask: Ask, reading: Reading) -> bool:
    """Whether the picture shows exactly what was asked: every object, no other, the relation, the tone if asked.

    The texture is not judged.
    """
    if reading.unreadable or len(reading.things) != len(ask.things) or ask.tone not in (None, reading.tone):
        return False
    return any(
        all(want.met_by(thing) for want, thing in zip(ask.things, order, strict=True))
        and (ask.relation is None or holds(ask.relation, order[0], order[1]))
        for order in permutations(reading.things)
    )


def matches(scene: Scene, reading: Reading) -> bool:
    """Whether the picture was read as all that `scene` is: every object, to a pixel, no other, and the tone.

    The texture is not judged.
    """
    if reading.unreadable or len(reading.things) != len(scene.things) or reading.tone != scene.tone:
        return False
    return all(any(_same(thing, seen) for seen in reading.things) for thing in scene.things)


def _same(a: Thing, b: Thing) -> bool:
    alike = (a.shape, a.colour, a.size, a.fill) == (b.shape, b.colour, b.size, b.fill)
    return alike and max(abs(a.x - b.x), abs(a.y - b.y), abs(a.radius - b.radius)) < 1


def _checked(image: NDArray[np.floating]) -> Array:
    image = np.asarray(image)
    if image.shape != (IMAGE_SIZE, IMAGE_SIZE, 3):
        raise InputError(bad_value("image", "the shapes oracle", "an array of shape (64, 64, 3)", image.shape))
    if not np.isfinite(image).all():
        raise InputError(bad_value("image", "the shapes oracle", "finite, in [0, 1]", "NaN or infinity"))
    return image.astype(np.float32, copy=False)


# ---------------------------------------------------------------------------------------------------------------------
# Regions


def _smooth_rows(field: Array) -> Array:
    smooth: Array = ndimage.correlate1d(field, SMOOTH, 0, mode="nearest")
    return smooth


def _smooth(field: Array) -> Array:
    """`field` (64, 64, ...) blurred by `SMOOTH` down and across."""
    return _smooth_rows(_smooth_rows(field).swapaxes(0, 1)).swapaxes(0, 1)


@dataclass(frozen=True)
class _Patch:
    """A window around one region: its `tint` (h, w, 2), the `window` in the picture, and its `box`."""

    tint: Array
    window: tuple[slice, slice]
    box: _Box


def _patches(tint: Array, strength: Array) -> Iterator[_Patch]:
    labels, _ = ndimage.label(strength > FAINT, structure=np.ones((3, 3)))
    for label, region in enumerate(ndimage.find_objects(labels), start=1):
        inside = labels[region] == label
        peak = strength[region][inside].max(initial=0.0)
        if inside.sum() < SPECK or peak < STAIN:
            continue
        rows, columns = region
        # Two more pixels around take in the soft edge; what belongs to a neighbour is blanked.
        window = (_grown(rows), _grown(columns))
        own = np.isin(labels[window], (0, label))
        core = inside & (strength[region] > peak / 4)
        box = _box(core, columns.start, rows.start)
        yield _Patch(tint[window] * own[..., None], window, box)


def _box(core: NDArray[np.bool_], left: int, top: int) -> _Box:
    columns, rows = np.flatnonzero(core.any(0)), np.flatnonzero(core.any(1))
    return left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1


def _grown(span: slice, by: int = 2) -> slice:
    return slice(max(span.start - by, 0), min(span.stop + by, IMAGE_SIZE))


# ---------------------------------------------------------------------------------------------------------------------
# Objects


@dataclass(frozen=True)
class _Fit:
    """A filled outline laid on a field. `gain` is its best strength, `misfit` the energy left, as a part of its own."""

    shape: Shape
    place: _Place
    cover: Array
    fill: Fill
    bands: Array
    gain: float
    misfit: float


def _read_thing(patch: _Patch, ground: Ground) -> Thing | None:
    """The object in `patch`, or None if it is not clearly one."""
    colour = _colour(patch.tint, ground)
    if colour is None:
        return None
    along, across = ground.split(patch.tint, COLOURS[colour])
    fit = _best_fit(_Field(along, float((along**2).sum() + (across**2).sum()), patch.window), patch.box)
    x, y, radius = fit.place
    size = _size(radius)
    if size is None or fit.misfit > MISFIT or not GAIN[0] <= fit.gain <= GAIN[1]:
        return None
    return Thing(fit.shape, colour, size, fit.fill, x, y, radius)


def _best_fit(field: _Field, box: _Box) -> _Fit:
    best = _fitted(field, box)
    return best if best.misfit < ODD else min(best, _fitted(replace(field, shifted=True), box), key=_misfit)


def _fitted(field: _Field, box: _Box) -> _Fit:
    fits: list[_Fit] = []
    for blur in BLURS:
        blurred = replace(field, blur=blur)
        for guess in sorted(_guesses(blurred, box), key=_misfit)[:CANDIDATES]:
            fits.append(_refined(guess, blurred))
            if fits[-1].misfit < PERFECT:
                return fits[-1]
    return min(fits, key=_misfit)


def _misfit(fit: _Fit) -> float:
    return fit.misfit


def _colour(tint: Array, ground: Ground) -> Colour | None:
    mean = tint.sum((0, 1))
    mean /= np.linalg.norm(mean)

    def likeness(colour: Colour) -> float:
        true = ground.tint(np.array(COLOURS[colour], np.float32))
        return float(mean @ true / np.linalg.norm(true))

    best = max(COLOURS, key=likeness)
    return best if likeness(best) >= HUE else None


def _size(radius: float) -> Size | None:
    """The nearer of the two; None for what is far from both."""
    (least, small), (large, most) = RADII["small"], RADII["large"]
    if not least - SLACK <= radius <= most + SLACK:
        return None
    return "small" if radius < (small + large) / 2 else "large"


# ---------------------------------------------------------------------------------------------------------------------
# Templates


@dataclass(frozen=True)
class _Field:
    """What templates are laid on: coverage · pattern as measured, (h, w); its whole `energy`, wrong hues included.

    `blur` is how often templates are smoothed: once, as the picture was, or more for a picture that was blurred before.
    `shifted` allows a pattern any place against its object's centre.
    """

    along: Array
    energy: float
    window: tuple[slice, slice]
    blur: int = 1
    shifted: bool = False

    def cover(self, shape: Shape, place: _Place) -> Array:
        around = _grown(self.window[0], self.blur), _grown(self.window[1], self.blur)
        rows, columns = (_SMOOTHING[self.blur][own, wide] for own, wide in zip(self.window, around, strict=True))
        return np.asarray(rows @ coverage(shape, *place, around) @ columns.T, np.float32)


_SMOOTHING: dict[int, Array] = {
    blur: np.linalg.matrix_power(_smooth_rows(np.eye(IMAGE_SIZE, dtype=np.float32)), blur) for blur in BLURS
}
# A pattern is drawn without smoothing, so it only has as many phases as its period has pixels.
_PHASES = int(PERIOD)
_BANDS: dict[tuple[int, Fill, int, int], int] = {
    key: number for number, key in enumerate(product(BLURS, FILLS, range(_PHASES), range(_PHASES)))
}
# One below the other, for a field to take many at once: (n, 64, 64).
_PATTERNS: Array = np.stack(
    [_SMOOTHING[blur] @ pattern(fill, x, y) @ _SMOOTHING[blur].T for blur, fill, x, y in _BANDS]
)


def _fills(field: _Field, x: float, y: float) -> tuple[list[Fill], Array]:
    """The three fills, (n, h, w): the patterns in every phase within a pixel of a centre at `x`, `y`, or in all."""
    steps = range(_PHASES) if field.shifted else (-1, 0, 1)
    near_x, near_y = ([(math.floor(v + 0.5) + step) % _PHASES for step in steps] for v in (x, y))
    keys: list[tuple[Fill, int, int]] = [("solid", 0, 0)]
    keys += [("striped", 0, py) for py in near_y]
    keys += [("checked", px, py) for px in near_x for py in near_y]
    chosen = [_BANDS[field.blur, *key] for key in keys]
    return [fill for fill, _, _ in keys], _PATTERNS[:, *field.window][chosen]


def _guesses(field: _Field, box: _Box) -> Iterator[_Fit]:
    """Every shape, laid into the region's box, in the fill that suits it best."""
    x0, y0, x1, y1 = box
    for shape in SHAPES:
        radius = (x1 - x0 + y1 - y0) / 4 / (0.88 if shape == "square" else 1)
        yield _best_fill(shape, ((x0 + x1) / 2, (y0 + y1) / 2, radius), field)


def _best_fill(shape: Shape, place: _Place, field: _Field) -> _Fit:
    cover = field.cover(shape, place)
    fills, patterns = _fills(field, place[0], place[1])
    bands = patterns.reshape(len(fills), -1)
    own = bands**2 @ cover.ravel() ** 2 + 1e-6  # energy of each template
    match = bands @ (cover * field.along).ravel()
    explained = match**2 / own
    best = int(explained.argmax())
    return _Fit(
        shape,
        place,
        cover,
        fill=fills[best],
        bands=patterns[best],
        gain=float(match[best] / own[best]),
        misfit=float(field.energy / max(explained[best], 1e-6) - 1),
    )


def _refined(fit: _Fit, field: _Field) -> _Fit:
    """`fit` moved and sized to sub-pixel precision: Gauss-Newton on x, y, radius and gain; the best round is kept."""
    best = fit
    for step in STEPS:
        moved = (field.cover(fit.shape, _moved(fit.place, step * axis)) for axis in np.eye(3))
        slopes = [(cover - fit.cover) * (fit.bands / step) for cover in moved]
        basis = np.stack([fit.cover * fit.bands, *slopes]).reshape(4, -1)
        gain, *moves = np.linalg.solve(basis @ basis.T + 1e-3 * np.eye(4), basis @ field.along.ravel())
        fit = _best_fill(fit.shape, _moved(fit.place, np.clip(np.array(moves) / max(gain, 0.1), -1.5, 1.5)), field)
        best = min(best, fit, key=_misfit)
    return best


def _moved(place: _Place, by: NDArray[np.floating]) -> _Place:
    x, y, radius = (float(v) for v in np.add(place, by))
    return x, y, max(radius, 2.0)
