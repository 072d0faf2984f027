"""What the blocks of each denoiser class hold, from its config: one function a kind of block.

Counted from diffusers' modules. `w` is the width, `mlp` the weights of an MLP. Norms, biases, embeddings and what all
blocks share are left out (a few hundredths of the weights).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fewstep.plan.work import Blocks

Config = Mapping[str, Any]


def width_of(config: Config) -> int:
    """Features of a token."""
    return int(config.get("dim") or config["num_attention_heads"] * config["attention_head_dim"])


def two_streams(count: int, w: int, mlp: int, modulation: int, attention: tuple[str, ...] = ("joint",)) -> Blocks:
    """Image and text with weights of their own, in one attention: q, k, v, out and an MLP each."""
    own = 4 * w * w * len(attention) + mlp
    text = 4 * w * w + mlp
    return Blocks(count, own, text, own + text + modulation, attention, sums=1 + len(attention))


def one_stream(count: int, w: int, mlp: int, modulation: int, sums: int) -> Blocks:
    """Image and text as one sequence with the same weights."""
    own = 4 * w * w + mlp
    return Blocks(count, own, own, own + modulation, ("joint",), sums)


def cross_attending(count: int, w: int, mlp: int, modulation: int = 0) -> Blocks:
    """The image alone, which looks at the text in an attention of its own (k and v are of the text)."""
    image, text = 4 * w * w + 2 * w * w + mlp, 2 * w * w
    return Blocks(count, image, text, image + text + modulation, ("self", "cross"), sums=3)


def flux(config: Config) -> tuple[Blocks, ...]:
    """FLUX.1: 19 blocks of two streams, 38 of one in which attention and MLP run side by side: one sum."""
    w = width_of(config)
    return (
        two_streams(config["num_layers"], w, 8 * w * w, 12 * w * w),
        one_stream(config["num_single_layers"], w, 8 * w * w, 3 * w * w, sums=1),
    )


def chroma(config: Config) -> tuple[Blocks, ...]:
    """FLUX.1 without modulation matrices: one small network gives all of it."""
    w = width_of(config)
    return (
        two_streams(config["num_layers"], w, 8 * w * w, 0),
        one_stream(config["num_single_layers"], w, 8 * w * w, 0, sums=1),
    )


def flux2(config: Config) -> tuple[Blocks, ...]:
    """FLUX.2: gated MLPs (two matrices in), modulation shared by all blocks."""
    w = width_of(config)
    mlp = round(3 * config.get("mlp_ratio", 3.0) * w * w)
    return (
        two_streams(config["num_layers"], w, mlp, 0),
        one_stream(config["num_single_layers"], w, mlp, 0, sums=1),
    )


def qwen_image(config: Config) -> tuple[Blocks, ...]:
    w = width_of(config)
    return (two_streams(config["num_layers"], w, 8 * w * w, 12 * w * w),)


def sd3(config: Config) -> tuple[Blocks, ...]:
    """SD3: some blocks of the medium model (`dual_attention_layers`) attend within the image once more."""
    w, dual = width_of(config), len(config.get("dual_attention_layers") or ())
    kinds = ((config["num_layers"] - dual, ("joint",), 12), (dual, ("joint", "self"), 15))
    return tuple(two_streams(count, w, 8 * w * w, m * w * w, attention) for count, attention, m in kinds if count)


def wan(config: Config) -> tuple[Blocks, ...]:
    w = width_of(config)
    return (cross_attending(config["num_layers"], w, 2 * w * config["ffn_dim"]),)


def ltx(config: Config) -> tuple[Blocks, ...]:
    """LTX and PixArt: modulation is shared by all blocks."""
    w = width_of(config)
    return (cross_attending(config["num_layers"], w, 8 * w * w),)


def hunyuan_video(config: Config) -> tuple[Blocks, ...]:
    w, mlp = width_of(config), round(2 * config.get("mlp_ratio", 4.0) * width_of(config) ** 2)
    return (
        two_streams(config["num_layers"], w, mlp, 12 * w * w),
        one_stream(config["num_single_layers"], w, mlp, 3 * w * w, sums=1),
    )


def cogvideox(config: Config) -> tuple[Blocks, ...]:
    w = width_of(config)
    return (one_stream(config["num_layers"], w, 8 * w * w, 12 * w * config.get("time_embed_dim", 512), sums=2),)


def mochi(config: Config) -> tuple[Blocks, ...]:
    """Mochi: the text's stream is narrower; gated MLPs of two thirds of four times the width."""
    w, t = width_of(config), config["pooled_projection_dim"]
    image, text = 4 * w * w + 8 * w * w, 4 * w * t + 8 * t * t
    return (Blocks(config["num_layers"], image, text, image + text + 4 * w * w + 4 * w * t, ("joint",), sums=2),)


def z_image(config: Config) -> tuple[Blocks, ...]:
    """Z-Image: one stream; before it, refiners of the image alone (modulated) and of the text alone."""
    w, refiners = width_of(config), config.get("n_refiner_layers", 2)
    own, modulation = 12 * w * w, 4 * w * min(w, 256)
    return (
        Blocks(refiners, own, own, 2 * own + modulation, ("self",), sums=2),
        one_stream(config["n_layers"], w, 8 * w * w, modulation, sums=2),
    )


BLOCKS: dict[str, Callable[[Config], tuple[Blocks, ...]]] = {
    "FluxTransformer2DModel": flux,
    "Flux2Transformer2DModel": flux2,
    "ChromaTransformer2DModel": chroma,
    "QwenImageTransformer2DModel": qwen_image,
    "SD3Transformer2DModel": sd3,
    "WanTransformer3DModel": wan,
    "LTXVideoTransformer3DModel": ltx,
    "PixArtTransformer2DModel": ltx,
    "HunyuanVideoTransformer3DModel": hunyuan_video,
    "CogVideoXTransformer3DModel": cogvideox,
    "MochiTransformer3DModel": mochi,
    "ZImageTransformer2DModel": z_image,
}


def hidden_of(config: Config) -> int:
    """Features inside the MLP, which tensor parallelism cuts."""
    return int(config.get("ffn_dim") or round(config.get("mlp_ratio", 4.0) * width_of(config)))
