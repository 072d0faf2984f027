"""Where a transformer's tokens lie in the picture or the clip that it predicts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.models.families import family


@dataclass(frozen=True)
class Grid:
    """The tokens of a prediction.

    Attributes:
        shape: their numbers along (frames,) height and width; one number where the prediction comes as tokens, whose
            places are then not told.
        patch: how many latent pixels a token has along each of these; all 1 where the prediction comes as tokens.
        frames_first: latents have their frames before their channels.
    """

    shape: tuple[int, ...]
    patch: tuple[int, ...]
    frames_first: bool = False

    @classmethod
    def of(cls, denoiser: nn.Module, prediction: Tensor) -> Grid:
        """From a prediction: tokens (batch, tokens, features), or latents (batch, channels, (frames,) height, width).

        Sizes that the denoiser's patch does not divide are rounded down, as its embedding does.
        """
        if prediction.ndim == 3:
            return cls((prediction.shape[1],), (1,))
        frames_first = prediction.ndim == 5 and family(type(denoiser).__name__).frames_first
        sizes = prediction.movedim(2, 1).shape[2:] if frames_first else prediction.shape[2:]
        patch = patch_of(getattr(denoiser, "config", {}), len(sizes))
        return cls(tuple(size // side for size, side in zip(sizes, patch, strict=True)), patch, frames_first)

    @property
    def tokens(self) -> int:
        return math.prod(self.shape)

    def split(self, prediction: Tensor) -> Tensor:
        """A prediction as tokens, (batch, tokens, features), in the order of the transformer's own."""
        if prediction.ndim == 3:
            return prediction
        latents = prediction.movedim(2, 1) if self.frames_first else prediction
        sides = [side for pair in zip(self.shape, self.patch, strict=True) for side in pair]
        parts = latents.reshape(*latents.shape[:2], *sides)
        axes = range(len(self.shape))
        parts = parts.permute(0, *(2 + 2 * axis for axis in axes), 1, *(3 + 2 * axis for axis in axes))
        return parts.reshape(len(latents), self.tokens, -1)

    def join(self, tokens: Tensor) -> Tensor:
        """The inverse of `split`."""
        if len(self.shape) == 1:
            return tokens
        axes = range(len(self.shape))
        parts = tokens.reshape(len(tokens), *self.shape, -1, *self.patch)
        order = [side for axis in axes for side in (1 + axis, 2 + len(axes) + axis)]
        sizes = [size * side for size, side in zip(self.shape, self.patch, strict=True)]
        latents = parts.permute(0, 1 + len(axes), *order).reshape(len(tokens), -1, *sizes)
        return latents.movedim(1, 2) if self.frames_first else latents

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
