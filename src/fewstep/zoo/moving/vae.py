"""A whole clip through Wan 2.2's autoencoder at once, as a training step needs it.

`AutoencoderKLWan.encode` and `decode` go through a clip in chunks of frames and carry a cache of features from one to
the next. That saves memory and costs time. Every layer is causal, so all frames at once give the same: the layers that
halve or double the frames only have to leave out the first one, as the cache makes them do.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanDecoder3d,
    WanEncoder3d,
    WanResample,
    WanResidualDownBlock,
    WanResidualUpBlock,
    patchify,
    unpatchify,
)
from torch import Tensor, nn


def encode(vae: AutoencoderKLWan, clips: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance of the latents, each (n, channels, 1 + (frames − 1) / 4, height / 8, width / 8).

    Args:
        clips: shape (n, 3, frames, height, width), in [-1, 1], frames = 1 + 4·k.
    """
    encoder = vae.encoder
    x = encoder.conv_in(patchify(clips, vae.config["patch_size"]))
    moments = vae.quant_conv(_head(encoder, encoder.mid_block(_through(encoder.down_blocks, x))))
    mean, log_variance = moments.chunk(2, dim=1)
    return mean, log_variance.clamp(-30, 20)


def decode(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """The clips, (n, 3, frames, height, width), about [-1, 1] but not clipped to it as `vae.decode` does."""
    decoder = vae.decoder
    x = decoder.mid_block(decoder.conv_in(vae.post_quant_conv(latents)))
    clips: Tensor = unpatchify(_head(decoder, _through(decoder.up_blocks, x)), vae.config["patch_size"])
    return clips


def _through(layers: Iterable[nn.Module], x: Tensor) -> Tensor:
    for layer in layers:
        x = _through_one(layer, x)
    return x


def _through_one(layer: nn.Module, x: Tensor) -> Tensor:
    match layer:
        case WanResample():
            return _resampled(layer, x)
        case WanResidualDownBlock():
            last = [] if layer.downsampler is None else [layer.downsampler]
            down: Tensor = _through([*layer.resnets, *last], x) + layer.avg_shortcut(x)
            return down
        case WanResidualUpBlock():
            last = [] if layer.upsampler is None else [layer.upsampler]
            up = _through([*layer.resnets, *last], x)
            return up if layer.avg_shortcut is None else up + layer.avg_shortcut(x, first_chunk=True)
    made: Tensor = layer(x)
    return made


def _resampled(layer: WanResample, x: Tensor) -> Tensor:
    """Half or twice the frames, the first one apart, and half or twice the size."""
    if layer.mode == "upsample3d":
        x = torch.cat([x[:, :, :1], _interleaved(layer.time_conv(x[:, :, 1:]))], 2)
    x = layer(x)
    return torch.cat([x[:, :, :1], layer.time_conv(x)], 2) if layer.mode == "downsample3d" else x


def _interleaved(x: Tensor) -> Tensor:
    """(n, 2·c, t, h, w) → (n, c, 2·t, h, w): the two halves of the channels become neighbouring frames."""
    return torch.stack(x.chunk(2, dim=1), 3).flatten(2, 3)


def _head(half: WanEncoder3d | WanDecoder3d, x: Tensor) -> Tensor:
    made: Tensor = half.conv_out(half.nonlinearity(half.norm_out(x)))
    return made
