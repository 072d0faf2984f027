"""The untrained parts of the `shapes` pipeline: a `FluxPipeline` small enough to train on two CPU cores.

64×64 pixels become 16×16×12 latents and, packed 2×2 as Flux does, 64 image tokens; a prompt becomes `PROMPT_TOKENS`
text tokens (from a small T5 encoder) and one pooled vector (from a small CLIP). Both text encoders learn to read
(`reading.py`) before the transformer learns to draw, and then stay as they are.
"""

from __future__ import annotations

from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast, T5EncoderModel

from fewstep.zoo.shapes.scenes import IMAGE_SIZE, vocabulary
from fewstep.zoo.words import small_t5, word_tokenizer

PROMPT_TOKENS = 24
LATENT_CHANNELS = 12
SHIFT = 1.5  # of the sampling times: t' = s·t / (1 + (s − 1)·t)
CALL = {  # what the pipeline's call needs, since Flux's own defaults are those of a much larger model
    "height": IMAGE_SIZE,
    "width": IMAGE_SIZE,
    "max_sequence_length": PROMPT_TOKENS,
    "num_inference_steps": 50,
    "negative_prompt": "",
    "true_cfg_scale": 2.5,
}


def build_tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer(vocabulary(), PROMPT_TOKENS)


def build_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(12, 24, 48),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        sample_size=IMAGE_SIZE,
        shift_factor=0.0,
    )


def build_text_encoder(vocab_size: int) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocab_size,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=1,
            num_attention_heads=4,
            max_position_embeddings=PROMPT_TOKENS,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=1,
        )
    )


def build_text_encoder_2(vocab_size: int) -> T5EncoderModel:
    return small_t5(T5EncoderModel, vocab_size, PROMPT_TOKENS)


def build_transformer() -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        in_channels=4 * LATENT_CHANNELS,
        num_layers=1,
        num_single_layers=6,
        attention_head_dim=32,
        num_attention_heads=6,
        joint_attention_dim=128,
        pooled_projection_dim=64,
        axes_dims_rope=(4, 14, 14),
        guidance_embeds=False,
    )


def build_pipeline() -> FluxPipeline:
    """The whole pipeline with random weights."""
    tokenizer = build_tokenizer()
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=build_vae(),
        text_encoder=build_text_encoder(len(tokenizer)),
        tokenizer=tokenizer,
        text_encoder_2=build_text_encoder_2(len(tokenizer)),
        tokenizer_2=tokenizer,
        transformer=build_transformer(),
    )
