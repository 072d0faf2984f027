"""A whole text-to-image pipeline that runs in milliseconds, and what two of its states differ by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from torch import Tensor

from fewstep.machine import Machine
from fewstep.models.load import with_defaults
from fewstep.models.manifest import Manifest
from fewstep.models.model import Model
from fewstep.zoo.shapes.pipeline import LATENT_CHANNELS, build_pipeline

CALL = {"height": 64, "width": 64, "max_sequence_length": 24, "output_type": "latent"}
GUIDED = {**CALL, "negative_prompt": "", "true_cfg_scale": 2.5}
PROMPT = "a large red ring"
ABLE = Machine("cpu", "a CPU that can all", 2, 16.0, frozenset({"bf16", "int8", "compile"}))
BARE = Machine("cpu", "a CPU that can nothing", 2, 16.0, frozenset())


def transformer(**config: Any) -> FluxTransformer2DModel:
    """Two lists of blocks, 64 features."""
    sizes = {
        "in_channels": 4 * LATENT_CHANNELS,
        "num_layers": 1,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 4,
        "joint_attention_dim": 128,
        "pooled_projection_dim": 64,
        "axes_dims_rope": (4, 6, 6),
    }
    return FluxTransformer2DModel(**{**sizes, **config}).eval()


def pipeline(seed: int = 0, **config: Any) -> FluxPipeline:
    """A pipeline of random weights, the same for the same seed."""
    torch.manual_seed(seed)
    pipe = build_pipeline()
    pipe.transformer = transformer(**config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def student_folder(folder: Path, *, pipe: FluxPipeline | None = None, manifest: Manifest | None = None) -> Path:
    """A pipeline saved with the manifest of a 2-step student."""
    (pipe or pipeline(seed=1)).save_pretrained(folder)
    (manifest or Manifest("tiny-2step", call={"num_inference_steps": 2}, steps=2, guidance_inside=True)).write(folder)
    return folder


def as_loaded(pipe: FluxPipeline) -> FluxPipeline:
    """With the defaults of a teacher's manifest, as `fewstep.load` leaves a pipeline."""
    return with_defaults(pipe, Manifest("tiny", call={**GUIDED, "num_inference_steps": 4}))


def run(pipe: Any, *, steps: int = 4, **call: Any) -> Tensor:
    """Latents of one prompt and seed, guided unless the call says otherwise."""
    call = {**GUIDED, "num_inference_steps": steps, "generator": torch.Generator().manual_seed(7), **call}
    return pipe(PROMPT, **call).images


def distance(a: Tensor, b: Tensor) -> float:
    """mean|a − b| / mean|b|."""
    return float((a.detach().double() - b.detach().double()).abs().mean() / b.detach().double().abs().mean())


def state(pipe: Any) -> dict[str, Any]:
    """All that `remove` must bring back: module objects, their forwards, and each weight's object, dtype and place."""
    found: dict[str, Any] = {"scheduler": id(pipe.scheduler), "config": dict(pipe.config)}
    for component, root in Model(pipe).modules.items():
        for path, module in root.named_modules():
            found[f"{component}.{path}"] = (id(module), "forward" in module.__dict__, module.training)
        for path, tensor in [*root.named_parameters(), *root.named_buffers()]:
            found[f"{component}.{path}"] = (id(tensor), tensor.dtype, tensor.data_ptr())
    return found


@contextmanager
def no_codegen() -> Iterator[None]:
    """torch.compile captures graphs as always but runs them without generating code: seconds instead of a minute."""
    with mock.patch("torch._inductor.compile_fx.compile_fx", lambda graph, inputs, config_patches: graph.forward):
        yield
