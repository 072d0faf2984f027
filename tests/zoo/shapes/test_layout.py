"""The layout says of every image token what the picture shows there."""

from __future__ import annotations

import numpy as np
import pytest

from fewstep.zoo.shapes.layout import COLUMNS, GRID, layout
from fewstep.zoo.shapes.scenes import COLOURS, FILLS, SHAPES, SIZES, TEXTURES, TONES, Scene, Thing

NAMES = (*SHAPES, *COLOURS, *FILLS, *SIZES, "across", "down", *TONES, *TEXTURES)


def column(shown, name):
    return shown[:, NAMES.index(name)].reshape(GRID, GRID)


def test_an_object_is_told_where_it_is_and_nowhere_else() -> None:
    # Radius 8 about a corner that four tokens share: each holds a quarter of the disc.
    shown = layout(Scene((Thing("ring", "red", "small", "striped", 24, 16, 8),), "teal", "wavy", seed=0))
    assert shown.shape == (GRID * GRID, COLUMNS) == (64, len(NAMES))
    place = np.zeros((GRID, GRID))
    place[1:3, 2:4] = np.pi / 4
    for name in ("ring", "red", "small", "striped"):
        assert column(shown, name) == pytest.approx(place, abs=0.01)
    for name in ("circle", "blue", "large", "solid"):
        assert not column(shown, name).any()
    # From the centres of these tokens the object's is half a radius away: to the right of the left ones.
    assert column(shown, "across")[1, 2:4] == pytest.approx([np.pi / 8, -np.pi / 8], abs=0.01)
    assert column(shown, "down")[1:3, 2] == pytest.approx([np.pi / 8, -np.pi / 8], abs=0.01)


def test_the_background_is_told_in_every_token() -> None:
    shown = layout(Scene((), "teal", "wavy", seed=0))
    assert (column(shown, "teal") == 1).all()
    assert (column(shown, "wavy") == 1).all()
    assert shown.sum() == 2 * GRID * GRID
