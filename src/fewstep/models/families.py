"""What a module tree does not tell, as data: one entry a denoiser class.

A class that has no entry gets safe defaults: its blocks are found from the module tree (`blocks.py`), what they return
is unknown until a run shows it, and only linear layers inside its blocks may be quantized.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Outputs:
    """What a block's forward returns: a tensor, or a tuple in which the streams stand at these places.

    `hidden` is the place of the image (or video) stream, None where the block returns that tensor itself; `encoder` the
    place of the text stream, None where the block does not return one.
    """

    hidden: int | None = None
    encoder: int | None = None


TENSOR = Outputs()
TEXT_FIRST = Outputs(hidden=1, encoder=0)
IMAGE_FIRST = Outputs(hidden=0, encoder=1)


MODULATION = ("norm", "modulation", "embed")  # they set scale and shift of whole blocks, and cost almost nothing


@dataclass(frozen=True)
class Temporal:
    """How a video transformer is told where and when its tokens are, which a causal one must be told chunk by chunk.

    Attributes:
        attention: name of the attention over the clip's own tokens, in a block.
        rope: the module that gives their rotations, (cos, sin) of pairs of neighbouring features, from the clip.
        timestep, hidden: arguments of its forward. The timestep may be one for each token, (batch, tokens).
    """

    attention: str
    rope: str
    timestep: str = "timestep"
    hidden: str = "hidden_states"


@dataclass(frozen=True)
class Family:
    """Facts about one denoiser class.

    Attributes:
        block_lists: paths of the ModuleLists of the main stream, in running order; empty: found from the tree.
        outputs: block class name -> what its forward returns.
        keep: substrings of layer paths that must stay in full precision, although inside a block.
        frames_first: latents are (batch, frames, channels, height, width), where others have channels before frames.
        temporal: what it takes to let a video model see only the past; None where that is not known.
    """

    block_lists: tuple[str, ...] = ()
    outputs: tuple[tuple[str, Outputs], ...] = ()
    keep: tuple[str, ...] = MODULATION
    frames_first: bool = False
    temporal: Temporal | None = None


DEFAULT = Family()

DOUBLE_SINGLE = ("transformer_blocks", "single_transformer_blocks")

FAMILIES: dict[str, Family] = {
    "FluxTransformer2DModel": Family(
        DOUBLE_SINGLE, (("FluxTransformerBlock", TEXT_FIRST), ("FluxSingleTransformerBlock", TEXT_FIRST))
    ),
    "Flux2Transformer2DModel": Family(
        DOUBLE_SINGLE, (("Flux2TransformerBlock", TEXT_FIRST), ("Flux2SingleTransformerBlock", TENSOR))
    ),
    "SD3Transformer2DModel": Family(("transformer_blocks",), (("JointTransformerBlock", TEXT_FIRST),)),
    "WanTransformer3DModel": Family(
        ("blocks",), (("WanTransformerBlock", TENSOR),), temporal=Temporal(attention="attn1", rope="rope")
    ),
    "LTXVideoTransformer3DModel": Family(("transformer_blocks",), (("LTXVideoTransformerBlock", TENSOR),)),
    "PixArtTransformer2DModel": Family(("transformer_blocks",), (("BasicTransformerBlock", TENSOR),)),
    "DiTTransformer2DModel": Family(("transformer_blocks",), (("BasicTransformerBlock", TENSOR),)),
    "SanaTransformer2DModel": Family(("transformer_blocks",), (("SanaTransformerBlock", TENSOR),)),
    "QwenImageTransformer2DModel": Family(
        ("transformer_blocks",), (("QwenImageTransformerBlock", TEXT_FIRST),), (*MODULATION, "img_mod", "txt_mod")
    ),
    "CogVideoXTransformer3DModel": Family(
        ("transformer_blocks",), (("CogVideoXBlock", IMAGE_FIRST),), frames_first=True
    ),
    "HunyuanVideoTransformer3DModel": Family(
        DOUBLE_SINGLE,
        (
            ("HunyuanVideoTransformerBlock", IMAGE_FIRST),
            ("HunyuanVideoSingleTransformerBlock", IMAGE_FIRST),
            ("HunyuanVideoTokenReplaceTransformerBlock", IMAGE_FIRST),
            ("HunyuanVideoTokenReplaceSingleTransformerBlock", IMAGE_FIRST),
        ),
    ),
    "UNet2DConditionModel": Family((), (("BasicTransformerBlock", TENSOR),)),
    "CogView4Transformer2DModel": Family(("transformer_blocks",), (("CogView4TransformerBlock", IMAGE_FIRST),)),
    "MochiTransformer3DModel": Family(("transformer_blocks",), (("MochiTransformerBlock", IMAGE_FIRST),)),
    "ZImageTransformer2DModel": Family(("layers",), (("ZImageTransformerBlock", TENSOR),)),
    "ChromaTransformer2DModel": Family(
        DOUBLE_SINGLE, (("ChromaTransformerBlock", TEXT_FIRST), ("ChromaSingleTransformerBlock", TENSOR))
    ),
}


def family(denoiser_class: str) -> Family:
    """The entry of a denoiser class name, or the safe defaults."""
    return FAMILIES.get(denoiser_class, DEFAULT)
