"""Where a transformer's tokens lie in the picture or the clip that it predicts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Grid:
    """The tokens of a prediction.

    Attributes:
        shape: their numbers along (frames,) height and width; one number where the prediction comes as tokens, whose
            places are then not told.
        patch: how many latent pixels a token has along each of these; all 1 where the prediction comes as tokens.
    """

    shape: tuple[int, ...]
    patch: tuple[int, ...]

    @classmethod
    def of(cls, denoiser: nn.Module, prediction: Tensor) -> Grid:
        """From a prediction: tokens (batch, tokens, features), or latents (batch, channels, (frames,) height, width).

        Sizes that the denoiser's patch does not divide are rounded down, as its embedding does.
        """
        if prediction.ndim == 3:
            return cls((prediction.shape[1],), (1,))
        sizes = prediction.shape[2:]
        patch = patch_of(getattr(denoiser, "config", {}), len(sizes))
        return cls(tuple(size // side for size, side in zip(sizes, patch, strict=True)), patch)

    @property
    def tokens(self) -> int:
        return math.prod(self.shape)

    def split(self, prediction: Tensor) -> Tensor:
        """A prediction as tokens, (batch, tokens, features), in the order of the transformer's own."""
        if prediction.ndim == 3:
            return prediction
        batch, channels = prediction.shape[:2]
        sides = [side for pair in zip(self.shape, self.patch, strict=True) for side in pair]
        parts = prediction.reshape(batch, channels, *sides)
        axes = range(len(self.shape))
        parts = parts.permute(0, *(2 + 2 * axis for axis in axes), 1, *(3 + 2 * axis for axis in axes))
        return parts.reshape(batch, self.tokens, -1)

    def join(self, tokens: Tensor, like: Tensor) -> Tensor:
        """The inverse of `split`, for a prediction of the shape of `like`."""
        if like.ndim == 3:
            return tokens
        dims = len(self.shape)
        parts = tokens.reshape(tokens.shape[0], *self.shape, -1, *self.patch)
        order = [side for axis in range(dims) for side in (1 + axis, 2 + dims + axis)]
        return parts.permute(0, 1 + dims, *order).reshape(like.shape)

    def with_neighbours(self, values: Tensor) -> Tensor:
        """The largest of each token's own value, (batch, tokens), and those of the tokens that touch it."""
        dims = len(self.shape)
        if dims == 1:
            return values
        pool = torch.nn.functional.max_pool3d if dims == 3 else torch.nn.functional.max_pool2d
        return pool(values.reshape(-1, 1, *self.shape), 3, stride=1, padding=1).reshape(values.shape)


def patch_of(config: Any, dims: int) -> tuple[int, ...]:
    """The patch of a denoiser along `dims` axes, by its config: (frames,) height, width."""
    size = config.get("patch_size", 1)
    if isinstance(size, list | tuple):
        return (1,) * (dims - len(size)) + tuple(size)
    frames = config.get("patch_size_t", 1) or 1
    return (*((frames,) * (dims - 2)), size, size)


def aspect_grid(tokens: int, aspect: float) -> tuple[int, int]:
    """Height and width in tokens of a picture of `tokens` tokens whose height is `aspect` times its width: of the whole
    numbers with that product the nearest."""
    heights = [side for side in range(1, tokens + 1) if tokens % side == 0]
    height = min(heights, key=lambda side: abs(math.log(side * side / tokens / aspect)))
    return height, tokens // height
