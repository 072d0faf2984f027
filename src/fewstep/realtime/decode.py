"""Latents to frames as they come: a causal video VAE's decoder with the features that it keeps of the frames before.

`vae.decode` forgets them at the end of each call, and so can't go on. Here they belong to the stream, so two streams
may share a VAE. A small decoder (`distill.decoder`) only looks at the latent frame before.
"""

from __future__ import annotations

import copy
from typing import Any, Protocol

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify
from numpy.typing import NDArray
from torch import Tensor, nn

from fewstep.distill.decoder import decode_pairs, latent_scale
from fewstep.errors import InputError

Frames = NDArray[np.uint8]
DECODERS = ("AutoencoderKLWan",)


class Stream(Protocol):
    """A decoder that remembers what it needs of the frames before.

    Attributes:
        last: the newest latent frame, (1, channels, 1, height, width); None at the beginning and after a cut.
    """

    last: Tensor | None

    def __call__(self, latents: Tensor) -> Tensor:
        """The next latent frames (1, channels, n, height, width), as the denoiser has them, to pixels in [0, 1],
        (frames, 3, height, width): one frame for the stream's first latent frame, a VAE's number for each other."""
        ...

    def follow(self, last: Tensor | None) -> None:
        """Go on after this latent frame, which another decoder has shown; after None nothing of the past shows."""
        ...


class StreamDecoder:
    """One stream's way through a VAE's decoder.

    Raises:
        InputError: the VAE is of a class that is not known to decode frame by frame.
    """

    def __init__(self, vae: nn.Module) -> None:
        check_streams(vae)
        self._vae: Any = vae
        self._scale = latent_scale(vae)
        self._features: list[Any] = []
        self.last: Tensor | None = None

    @torch.no_grad()
    def __call__(self, latents: Tensor) -> Tensor:
        vae, parts = self._vae, []
        weight = vae.post_quant_conv.weight
        mean, std = (one.to(weight) for one in self._scale)
        x = vae.post_quant_conv(latents.to(weight) * std + mean)
        for one in x.split(1, 2):
            first = not self._features
            if first:
                self._features = [None] * vae._cached_conv_counts["decoder"]
            parts.append(vae.decoder(one, feat_cache=self._features, feat_idx=[0], first_chunk=first))
        self.last = latents[:, :, -1:]
        decoded = torch.cat(parts, 2)
        if vae.config["patch_size"] is not None:
            decoded = unpatchify(decoded, vae.config["patch_size"])
        return _pixels(decoded[0].transpose(0, 1))

    def follow(self, last: Tensor | None) -> None:
        self._features, self.last = [], None
        if last is not None:
            self(last)


class SmallStream:
    """One stream's way through a small decoder, where the VAE is and in its precision. `frames`: of a latent frame."""

    def __init__(self, small: Any, vae: nn.Module, frames: int) -> None:
        self._whole, self._vae, self._frames = small, vae, frames
        self._small = small
        self.last: Tensor | None = None

    @torch.no_grad()
    def __call__(self, latents: Tensor) -> Tensor:
        given = latents.to(like := next(self._vae.parameters()))
        own = next(self._small.parameters())
        if (own.dtype, own.device) != (like.dtype, like.device):
            # That order in memory makes bfloat16 half again as quick on a CPU. diffusers' own `to` would warn of layers
            # that are to stay in float32, of which there are none.
            self._small = copy.deepcopy(self._whole)
            nn.Module.to(self._small, like)
            self._small.to(memory_format=torch.channels_last)
        made = decode_pairs(self._small, given, None if self.last is None else self.last.to(given))
        frames = made.flatten(1, 2)[0, self._frames - 1 if self.last is None else 0 :]
        self.last = latents[:, :, -1:]
        return _pixels(frames)

    def follow(self, last: Tensor | None) -> None:
        self.last = last


def _pixels(frames: Tensor) -> Tensor:
    return (frames.float() / 2 + 0.5).clamp(0, 1)


def check_streams(vae: Any) -> None:
    """Raises InputError where a VAE is not known to decode frame by frame."""
    if type(vae).__name__ not in DECODERS:
        raise InputError(f"{type(vae).__name__} can't decode a stream: known are {', '.join(DECODERS)}.")


def to_bytes(pixels: Tensor) -> Frames:
    """Pixels (frames, 3, height, width) in [0, 1] as RGB bytes, (frames, height, width, 3)."""
    rounded = (pixels * 255).round().to(torch.uint8)
    return np.ascontiguousarray(rounded.permute(0, 2, 3, 1).cpu().numpy())
