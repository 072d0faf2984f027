"""A Flux pipeline small enough for tests: the zoo's parts around a transformer of two blocks, random weights."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionPipeline,
    WanPipeline,
    WanTransformer3DModel,
)

from fewstep.models.load import with_defaults
from fewstep.models.manifest import Manifest
from fewstep.zoo.moving.pipeline import build_pipeline as build_video
from fewstep.zoo.shapes.pipeline import LATENT_CHANNELS, build_pipeline
from tests.models.tiny import unet

SHIFT = 1.5
SIZE = {"height": 16, "width": 16, "max_sequence_length": 8}
CALL = {**SIZE, "num_inference_steps": 8, "negative_prompt": "", "true_cfg_scale": 2.5}


def transformer() -> Any:
    return FluxTransformer2DModel(
        in_channels=4 * LATENT_CHANNELS,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=128,
        pooled_projection_dim=64,
        axes_dims_rope=(4, 6, 6),
        guidance_embeds=False,
    )


def pipeline(seed: int = 0) -> FluxPipeline:
    """A teacher with guidance; `pipe(prompt)` alone runs it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        whole = build_pipeline()
        parts = {
            **whole.components,
            "transformer": transformer(),
            "scheduler": FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        }
        pipe = FluxPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    return with_defaults(pipe, Manifest("tiny", call=CALL))


def stable_diffusion(scheduler: Any) -> StableDiffusionPipeline:
    """A teacher with a U-Net, guided by `guidance_scale`, on the schedule of `scheduler`."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        whole = build_pipeline()
        network = unet(in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS, cross_attention_dim=64)
        pipe = StableDiffusionPipeline(
            vae=whole.vae,
            text_encoder=whole.text_encoder,
            tokenizer=whole.tokenizer,
            unet=network.requires_grad_(True),
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipe.set_progress_bar_config(disable=True)
    call = {"height": 32, "width": 32, "num_inference_steps": 8, "guidance_scale": 4.0}
    return with_defaults(pipe, Manifest("tiny-sd", call=call))


def video_pipeline(seed: int = 0) -> WanPipeline:
    """A teacher of video with guidance: the zoo's parts around a transformer of two blocks, random weights."""
    call = {"height": 16, "width": 16, "num_frames": 9, "max_sequence_length": 8, "guidance_scale": 2.5}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        whole = build_video()
        transformer = WanTransformer3DModel.from_config(
            {**whole.transformer.config, "num_layers": 2, "num_attention_heads": 2, "ffn_dim": 32}
        )
        pipe = WanPipeline(**{**whole.components, "transformer": transformer})
    pipe.set_progress_bar_config(disable=True)
    return with_defaults(pipe, Manifest("tiny video", call={**call, "num_inference_steps": 8, "negative_prompt": ""}))
