"""A view of one pipeline for techniques: which components denoise, and where their repeated blocks are."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from fewstep.models.blocks import Block, find_blocks
from fewstep.models.families import Family, family
from fewstep.models.manifest import Manifest, manifest_of

DENOISER_NAMES = ("transformer", "unet", "dit", "denoiser")  # and numbered ones: transformer_2
DENOISER_PACKAGES = ("diffusers.models.transformers", "diffusers.models.unets")


@dataclass(frozen=True)
class Model:
    """One pipeline, seen by techniques. Nothing is copied: what a technique changes here changes in the pipeline."""

    pipe: Any  # a diffusers DiffusionPipeline

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """Component name -> module, of those that have weights, in the pipeline's order."""
        return {name: part for name, part in self.pipe.components.items() if isinstance(part, nn.Module)}

    @cached_property
    def denoisers(self) -> dict[str, nn.Module]:
        """What is called at each step, like `transformer`, `transformer_2` or `unet`."""
        return {name: module for name, module in self.modules.items() if denoises(name, module)}

    @property
    def text_encoders(self) -> dict[str, nn.Module]:
        return {name: module for name, module in self.modules.items() if name.startswith("text_encoder")}

    @property
    def vae(self) -> nn.Module | None:
        """The module that decodes latents; None where the pipeline works on pixels."""
        return next((module for name, module in self.modules.items() if name.startswith(("vae", "vqvae"))), None)

    @property
    def manifest(self) -> Manifest | None:
        return manifest_of(self.pipe)

    @property
    def guidance_argument(self) -> str | None:
        """The argument of the pipeline's call that says how closely the prompt is followed; None: it has none."""
        takes = inspect.signature(self.pipe.__call__).parameters
        embedded = any(getattr(part.config, "guidance_embeds", False) for part in self.denoisers.values())
        order = ("guidance_scale", "true_cfg_scale") if embedded else ("true_cfg_scale", "guidance_scale")
        return next((name for name in order if name in takes), None)

    def blocks(self, name: str) -> list[Block]:
        """The repeated blocks of the denoiser called `name`, in the order of its module tree."""
        return find_blocks(self.denoisers[name])

    def family(self, name: str) -> Family:
        """What `families.py` knows about the denoiser called `name`."""
        return family(type(self.denoisers[name]).__name__)


def denoises(name: str, module: nn.Module) -> bool:
    """Whether the component `name` of a pipeline is called at each step."""
    stem, _, number = name.rpartition("_")
    plain = stem if number.isdigit() else name
    return plain in DENOISER_NAMES or type(module).__module__.startswith(DENOISER_PACKAGES)
