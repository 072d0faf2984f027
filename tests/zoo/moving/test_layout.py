"""The layout says of every token what the clip shows there."""

from __future__ import annotations

import numpy as np
import pytest

from fewstep.zoo.moving.layout import COLUMNS, GRID, KINDS, TIMES, TOKENS, layout
from fewstep.zoo.moving.scenes import TEXTURES, Scene, Thing
from fewstep.zoo.shapes.scenes import TONES

NAMES = (*(name for kind in KINDS for name in kind), "to its x", "to its y", "x", "y", *TONES, *TEXTURES)


def column(shown, name):
    return shown[:, NAMES.index(name)].reshape(TIMES, GRID, GRID)


def test_an_object_is_told_where_it_is_when_it_is_there() -> None:
    # Radius 8 about a corner that four tokens share: each holds a quarter of the disc. It moves two pixels a frame.
    shown = layout(Scene((Thing("ring", "red", "right", 2.0, 16, 24, 8),), "teal", "wavy", seed=0))
    assert shown.shape == (TOKENS, COLUMNS) == (320, len(NAMES))
    place = np.zeros((GRID, GRID))
    place[2:4, 1:3] = np.pi / 4
    for name in ("ring", "red", "right", "fast"):
        assert column(shown, name)[0] == pytest.approx(place, abs=0.01)
    for name in ("circle", "blue", "left", "slow"):
        assert not column(shown, name).any()
    assert column(shown, "to its x")[0, 2, 1:3] == pytest.approx([np.pi / 8, -np.pi / 8], abs=0.01)
    assert column(shown, "to its y")[0, 2:4, 1] == pytest.approx([np.pi / 8, -np.pi / 8], abs=0.01)
    assert column(shown, "x")[0] == pytest.approx(2 * place, abs=0.02)
    assert not column(shown, "y").any()
    # Frames 1 to 4 are the second token's: it is 5 pixels further there, on their mean.
    middles = column(shown, "red").sum(1) @ (np.arange(GRID) * 8 + 4) / column(shown, "red").sum((1, 2))
    assert middles[:4] == pytest.approx([16, 21, 29, 37], abs=0.6)


def test_the_background_is_told_in_every_token() -> None:
    shown = layout(Scene((), "teal", "wavy", seed=0))
    assert (column(shown, "teal") == 1).all()
    assert (column(shown, "wavy") == 1).all()
    assert shown.sum() == 2 * TOKENS
