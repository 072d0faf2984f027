"""What a VAE's config says: how it compresses, and what it costs to decode."""

from __future__ import annotations

from math import log2, prod

from fewstep.plan.blocks import Config
from fewstep.plan.work import Decoder

PICTURES = ("AutoencoderKL", "AutoencoderKLFlux2", "AutoencoderKLQwenImage")  # they decode one frame
FLAT = ("AutoencoderKL", "AutoencoderKLFlux2")  # convolutions over rows and columns only
HELD = 8  # times the last level's values that are in memory at once: twice the channels come in, and are convolved


def decoder_of(config: Config) -> Decoder:
    """What decoding costs, from the channels of the VAE's levels.

    A level has `layers + 1` residual blocks of two convolutions (9 weights a pair of channels, in video 27) at its own
    resolution: a quarter of the pixels for each level down, and from the second on half the frames, as far as time is
    compressed. Middle block, norms and the change between levels are left out.
    """
    layers = config.get("num_res_blocks") or config.get("layers_per_block", 2)
    depth = 1 + (layers if isinstance(layers, int) else layers[0])
    kernel = 9 if config["_class_name"] in FLAT else 27
    frames, top = frames_of(config), _patch(config) ** 2
    flops = sum(
        2 * kernel * 2 * depth * c * c / (top * 4**level * 2 ** min(max(level - 1, 0), log2(frames)))
        for level, c in enumerate(channels_of(config))
    )
    # Diffusers' video VAEs decode a few latent frames at a time.
    return Decoder(flops, HELD * channels_of(config)[0] / top, 1 if frames == 1 else 2 * frames)


def frames_of(config: Config) -> int:
    """Frames that one latent frame stands for."""
    if config["_class_name"] in PICTURES:
        return 1
    given = config.get("scale_factor_temporal") or config.get("temporal_compression_ratio")
    if given:
        return int(given)
    if "temporal_expansions" in config:
        return prod(config["temporal_expansions"])
    return int(2 ** sum(config.get("spatio_temporal_scaling") or config["temperal_downsample"]))


def pixels_of(config: Config) -> int:
    """Rows (and columns) of pixels that one latent row stands for."""
    given = config.get("scale_factor_spatial") or config.get("spatial_compression_ratio")
    if given:
        return int(given)
    if "spatial_expansions" in config:
        return prod(config["spatial_expansions"])
    halvings = sum(config.get("spatio_temporal_scaling") or ()) or len(channels_of(config)) - 1
    return int(_patch(config) * 2**halvings)


def channels_of(config: Config) -> list[int]:
    """Of the decoder's levels, the one of the full picture first."""
    if "dim_mult" in config:
        base = config.get("decoder_base_dim") or config["base_dim"]
        return [base * times for times in config["dim_mult"]]
    return list(config.get("decoder_block_out_channels") or config["block_out_channels"])


def latent_of(config: Config) -> int:
    """Channels of the latents."""
    return int(config.get("latent_channels") or config["z_dim"])


def _patch(config: Config) -> int:
    """Rows (and columns) of pixels that the last layer makes at once. FLUX.2's `patch_size` is of its latents."""
    side = 1 if config["_class_name"] in PICTURES else config.get("patch_size") or 1
    return int(side)
