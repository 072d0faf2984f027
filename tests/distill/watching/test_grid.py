"""Grids: what is written can be read, small samples grow, large ones shrink, videos show three frames."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from fewstep.distill.watching import grid
from fewstep.errors import InputError

PROMPTS = ("a red ring", "ein kleines, blaues Kreuz — sehr lang " * 9)


def samples(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_what_is_saved_is_read_again_to_the_pixel(tmp_path):
    made = grid.grid_of("step 5", PROMPTS, samples(2, 3, 120, 130, 3))
    grid.save(made, tmp_path / "g.png")
    found = grid.read(tmp_path / "g.png")
    assert (found.title, found.prompts, found.columns, found.frames) == ("step 5", PROMPTS, made.columns, 1)
    np.testing.assert_array_equal(found.tiles, samples(2, 3, 120, 130, 3))
    assert len(made.columns) == 3


def test_small_samples_grow_by_a_whole_factor_and_large_ones_shrink():
    small = samples(1, 1, 64, 48, 3)
    shown = grid.grid_of("", PROMPTS[:1], small).tiles
    assert shown.shape == (1, 1, 128, 96, 3)
    np.testing.assert_array_equal(shown[:, :, ::2, 1::2], small)
    assert grid.grid_of("", PROMPTS[:1], samples(1, 1, 300, 600, 3)).tiles.shape == (1, 1, 128, 256, 3)


def test_videos_show_their_first_middle_and_last_frame():
    video = samples(2, 2, 9, 128, 128, 3)
    made = grid.grid_of("", PROMPTS, video)
    assert made.columns == tuple(f"noise {n} {part}" for n in (1, 2) for part in ("first", "middle", "last"))
    assert made.frames == 3
    np.testing.assert_array_equal(made.tiles[1, 3:], video[1, 1, [0, 4, 8]])
    assert grid.grid_of("", PROMPTS, video[:, :, :1]).tiles.shape[1] == 6


def test_labels_are_drawn_and_stay_beside_the_samples(tmp_path):
    grid.save(grid.grid_of("title", PROMPTS, np.full((2, 1, 112, 112, 3), 9, np.uint8)), tmp_path / "g.png")
    sheet = np.asarray(Image.open(tmp_path / "g.png"))
    left = sheet[:, : grid.LABEL - grid.GAP]
    for top, bottom in ((0, 30), (grid.HEAD, grid.HEAD + 40), (grid.HEAD + 118, grid.HEAD + 230)):
        assert left[top:bottom].min() < 120
    assert sheet[:, grid.LABEL - grid.GAP : grid.LABEL].min() == 255  # a long prompt is cut before the samples


def test_another_picture_is_no_grid(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "other.png")
    (tmp_path / "broken.png").write_bytes(b"PNG")
    for name in ("other.png", "broken.png", "absent.png"):
        with pytest.raises(InputError, match=f"{name} is no sample grid"):
            grid.read(tmp_path / name)
