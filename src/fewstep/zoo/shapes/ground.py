"""The background of a picture: its tone, its texture, and the tint that stands out from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from fewstep.zoo.shapes.scenes import IMAGE_SIZE, TONES, Texture, Tone

Array = NDArray[np.float32]

LIGHT = (0.65, 1.35)  # how far a texture lightens and darkens its tone (really 0.75 to 1.25)
STRAY = 0.06  # how far a background pixel may lie from its tone's ray in RGB space
SHARE = 0.25  # of the picture that must be of the tone


@dataclass(frozen=True)
class Ground:
    """The background: `tone` is None when it is none of the known ones; `colour` is what was measured, shape (3,)."""

    tone: Tone | None
    colour: Array
    plane: Array  # (3, 2): an orthonormal basis of what is orthogonal to the colour

    def tint(self, rgb: Array) -> Array:
        """The part of `rgb` (..., 3) that no shade of the background has, (..., 2)."""
        return rgb @ self.plane

    def split(self, tint: Array, colour: tuple[float, float, float]) -> tuple[Array, Array]:
        """`tint` along that of `colour`, in units of it, and across it; both (...)."""
        u, v = self.tint(np.array(colour, np.float32))
        size = u * u + v * v
        return (tint[..., 0] * u + tint[..., 1] * v) / size, (tint[..., 1] * u - tint[..., 0] * v) / size


def read_ground(image: Array) -> Ground:
    """The tone that most pixels of `image` (64, 64, 3) are a shade of."""
    members = {tone: _shades_of(np.array(rgb, np.float32), image) for tone, rgb in TONES.items()}
    tone = max(members, key=lambda tone: int(members[tone].sum()))
    known = members[tone].mean() >= SHARE
    colour = image[members[tone]].mean(0) if known else np.median(image.reshape(-1, 3), axis=0) + 1e-3
    return Ground(tone if known else None, colour, _orthogonal(colour))


def _shades_of(rgb: Array, image: Array) -> NDArray[np.bool_]:
    size = float(rgb @ rgb)
    light = image @ (rgb / size)
    stray = (image**2).sum(-1) - light**2 * size
    shades: NDArray[np.bool_] = (light > LIGHT[0]) & (light < LIGHT[1]) & (stray < STRAY**2)
    return shades


def _orthogonal(colour: Array) -> Array:
    return np.ascontiguousarray(np.linalg.svd(colour[None])[2][1:].T)


# ---------------------------------------------------------------------------------------------------------------------
# Texture

FLAT = 0.04  # standard deviation of the light, relative to its mean, below which there is no texture
PLANE, WAVE, LEVELS = 0.25, 0.40, 0.20  # most of the variance that a texture's own form may leave unexplained
WAVE_FROM = 3.7  # cycles a picture: slower waves are clouds

_CENTRE = (np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE].astype(np.float32) + 0.5) / IMAGE_SIZE - 0.5
_FREQUENCIES = np.arange(-8, 8.01, 0.25, dtype=np.float32)  # cycles a picture, a quarter apart
_WAVES = np.exp(-2j * np.pi * np.outer(_FREQUENCIES, _CENTRE[1][0])).astype(np.complex64)


def read_texture(image: Array, ground: Ground, free: NDArray[np.bool_]) -> Texture | None:
    """Which texture lightens and darkens the tone where `free` (64, 64) of objects; None if it is flat."""
    if free.sum() < 64:
        return None
    light = ndimage.uniform_filter(image @ (ground.colour / float(ground.colour @ ground.colour)), 2, mode="nearest")
    seen = light[free] - light[free].mean()
    if seen.std() < FLAT:
        return None
    if _unexplained(seen, np.stack([_CENTRE[0][free], _CENTRE[1][free], np.ones_like(seen)])) < PLANE:
        return "graded"
    fy, fx = _strongest_wave(light, free)
    phase = 2 * np.pi * (fx * _CENTRE[1][free] + fy * _CENTRE[0][free])
    if np.hypot(fx, fy) >= WAVE_FROM and _unexplained(seen, np.stack([np.cos(phase), np.sin(phase)])) < WAVE:
        return "wavy"
    high = (seen > 0).astype(np.float32)
    return "tiled" if _unexplained(seen, np.stack([high, 1 - high])) < LEVELS else "cloudy"


def _unexplained(values: Array, basis: Array) -> float:
    """The part of the energy of `values` (n,) that no mixture of `basis` (k, n) explains."""
    inner = (basis @ values).astype(np.float64)
    weights = np.linalg.lstsq((basis @ basis.T).astype(np.float64), inner, rcond=None)[0]
    return 1 - float(weights @ inner) / float(values @ values)


def _strongest_wave(light: Array, free: NDArray[np.bool_]) -> tuple[float, float]:
    """The frequency (y, x) of the strongest plane wave, in cycles a picture."""
    seen = np.where(free, light - light[free].mean(), np.float32(0))
    power = np.abs(_WAVES @ seen @ _WAVES.T)
    row, column = np.unravel_index(int(power.argmax()), power.shape)
    return float(_FREQUENCIES[row]), float(_FREQUENCIES[column])
