"""A Flux pipeline small enough for tests: the zoo's parts around a transformer of two blocks, random weights."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

from fewstep.models.load import with_defaults
from fewstep.models.manifest import Manifest
from fewstep.zoo.shapes.pipeline import LATENT_CHANNELS, build_pipeline

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
