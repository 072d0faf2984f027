"""Where tokens lie: latents become tokens and come back, and neighbours are neighbours."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fewstep.models.grid import Grid, aspect_grid, patch_of
from tests.models.tiny import noise, wan_transformer

SIDES = st.integers(1, 3)


@given(st.lists(st.tuples(SIDES, SIDES), min_size=2, max_size=3), SIDES, SIDES, st.booleans())
def test_join_undoes_split(axes: list[tuple[int, int]], batch: int, channels: int, frames_first: bool) -> None:
    shape, patch = zip(*axes, strict=True)
    grid = Grid(shape, patch, frames_first and len(axes) == 3)
    latents = noise(batch, channels, *(size * side for size, side in axes))
    latents = latents.movedim(1, 2) if grid.frames_first else latents
    tokens = grid.split(latents)
    assert tokens.shape[:2] == (batch, grid.tokens)
    assert torch.equal(grid.join(tokens), latents)


def test_tokens_stand_in_the_order_of_the_models_own() -> None:
    """Wan flattens its patch embedding: a token is active where that has its place."""
    model = wan_transformer(0)
    latents = noise(1, model.config["in_channels"], 2, 4, 6)
    embedded = model.patch_embedding(latents).flatten(2)
    grid = Grid.of(model, latents)
    assert grid.tokens == embedded.shape[2]
    weight = model.patch_embedding.weight.flatten(1)
    assert torch.allclose(grid.split(latents) @ weight.T + model.patch_embedding.bias, embedded.mT, atol=1e-5)


def test_a_prediction_of_tokens_tells_no_places() -> None:
    grid = Grid.of(nn.Identity(), noise(2, 7, 3))
    assert grid == Grid((7,), (1,))
    assert torch.equal(grid.with_neighbours(noise(2, 7)), noise(2, 7))


def test_neighbours_touch_along_every_axis() -> None:
    grid = Grid((3, 4, 5), (1, 1, 1))
    values = torch.zeros(2, *grid.shape)
    values[1, 1, 0, 4] = 1.0
    near = grid.with_neighbours(values.flatten(1)).reshape(values.shape)
    assert near[0].sum() == 0
    assert near[1].nonzero().tolist() == [[f, h, w] for f in (0, 1, 2) for h in (0, 1) for w in (3, 4)]


@pytest.mark.parametrize(
    ("config", "dims", "patch"),
    [
        ({}, 2, (1, 1)),
        ({"patch_size": 2}, 2, (2, 2)),
        ({"patch_size": 2, "patch_size_t": None}, 3, (1, 2, 2)),
        ({"patch_size": 2, "patch_size_t": 3}, 3, (3, 2, 2)),
        ({"patch_size": (1, 2, 2)}, 3, (1, 2, 2)),
        ({"patch_size": [2, 2]}, 3, (1, 2, 2)),
    ],
)
def test_a_config_says_the_patch(config: dict[str, object], dims: int, patch: tuple[int, ...]) -> None:
    assert patch_of(config, dims) == patch


@given(st.integers(1, 60), st.integers(1, 60))
def test_an_aspect_tells_height_and_width(height: int, width: int) -> None:
    assert aspect_grid(height * width, height / width) == (height, width)
