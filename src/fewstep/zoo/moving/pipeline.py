"""The untrained parts of the `moving-shapes` pipeline: a `WanPipeline` small enough to train on two CPU cores.

17×64×64 pixels become 5×8×8 latents of `LATENT_CHANNELS` channels, a token each; a prompt becomes `PROMPT_TOKENS` text
tokens from a small UMT5, which learns to read (`reading.py`) before the transformer learns to draw, and then stays as
it is.
"""

from __future__ import annotations

from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

from fewstep.zoo.moving.scenes import FRAMES, vocabulary
from fewstep.zoo.shapes.scenes import IMAGE_SIZE
from fewstep.zoo.words import small_t5, word_tokenizer

PROMPT_TOKENS = 24
LATENT_CHANNELS = 24
LATENT_SHAPE = (LATENT_CHANNELS, 1 + (FRAMES - 1) // 4, IMAGE_SIZE // 8, IMAGE_SIZE // 8)
SHIFT = 3.0  # of the sampling times: t' = s·t / (1 + (s − 1)·t)
CALL = {  # what the pipeline's call needs, since Wan's own defaults are those of a much larger model
    "height": IMAGE_SIZE,
    "width": IMAGE_SIZE,
    "num_frames": FRAMES,
    "max_sequence_length": PROMPT_TOKENS,
    "num_inference_steps": 50,
    "negative_prompt": "",
    "guidance_scale": 3.0,
}


def build_tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer(vocabulary(), PROMPT_TOKENS)


def build_vae() -> AutoencoderKLWan:
    """As in Wan 2.2: 2×2 pixels become one with four times the channels, two halvings of space and time follow, and
    each of them has a way around it, with which it learns faster."""
    return AutoencoderKLWan(
        base_dim=16,
        decoder_base_dim=24,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        is_residual=True,
        patch_size=2,
        in_channels=12,
        out_channels=12,
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
        scale_factor_temporal=4,
        scale_factor_spatial=8,
    )


def build_text_encoder(vocab_size: int) -> UMT5EncoderModel:
    return small_t5(UMT5EncoderModel, vocab_size, PROMPT_TOKENS)


def build_transformer() -> WanTransformer3DModel:
    return WanTransformer3DModel(
        patch_size=(1, 1, 1),
        num_attention_heads=6,
        attention_head_dim=32,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=128,
        freq_dim=128,
        ffn_dim=576,
        num_layers=8,
        rope_max_seq_len=32,
    )


def build_pipeline() -> WanPipeline:
    """The whole pipeline with random weights."""
    tokenizer = build_tokenizer()
    return WanPipeline(
        tokenizer=tokenizer,
        text_encoder=build_text_encoder(len(tokenizer)),
        vae=build_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        transformer=build_transformer(),
    )
