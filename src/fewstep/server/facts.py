"""What a loaded pipeline can do, read off its call, parts and manifest, so that requests are checked at once."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fewstep.models.manifest import manifest_of
from fewstep.models.model import Model

Kind = Literal["image", "video"]
# How many pixels a latent stands for, and frames; pipelines name it in one of these ways.
SPACE = ("vae_spatial_compression_ratio", "vae_scale_factor_spatial", "vae_scale_factor")
TIME = ("vae_temporal_compression_ratio", "vae_scale_factor_temporal")
PIXELS = 16  # what sizes are multiples of at the least: of OpenAI's sizes, and in many pipelines' own checks


@dataclass(frozen=True)
class Facts:
    """One model, as requests see it.

    Attributes:
        kind: what it makes.
        size: width and height where a request names none; None: the pipeline's own business.
        multiple: what width and height must be multiples of.
        frames: of a video where a request names no seconds.
        frame_step: frames of a video are one more than a multiple of this.
        guidance: the argument of the call that says how closely the prompt is followed; None: it can't be told.
        edits: which of `image` and `mask` it can start from.
        starts_from: whether its call takes a picture to start from.
        recipes: problems of each recipe that a request may name; most have none.
    """

    kind: Kind
    size: tuple[int, int] | None
    multiple: int
    frames: int | None
    frame_step: int
    guidance: str | None
    edits: frozenset[str]
    starts_from: bool
    recipes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def facts_of(pipe: Any, call: Mapping[str, Any], recipes: Mapping[str, tuple[str, ...]]) -> Facts:
    """Read off a plain pipeline, before a recipe is on it. `call`: the operator's defaults."""
    parameters = inspect.signature(pipe.__call__).parameters
    manifest = manifest_of(pipe)
    own = {name: p.default for name, p in parameters.items() if p.default not in (None, inspect.Parameter.empty)}
    defaults = {**own, **(manifest.call if manifest else {}), **call}
    kind: Kind = "video" if "num_frames" in parameters else "image"
    return Facts(
        kind=kind,
        size=_size(pipe, defaults),
        multiple=_multiple(pipe),
        frames=int(defaults["num_frames"]) if kind == "video" else None,
        frame_step=_first(pipe, TIME, 4),
        guidance=None if manifest and manifest.guidance_inside else Model(pipe).guidance_argument,
        edits=_edits(pipe) if kind == "image" else frozenset(),
        starts_from="image" in parameters,
        recipes=recipes,
    )


def frames_for(seconds: float, fps: int, step: int) -> int:
    """The number of frames nearest to `seconds` that a VAE of this step in time decodes: k·step + 1, k at least 1."""
    return 1 + step * max(1, round((seconds * fps - 1) / step))


def _first(pipe: Any, names: tuple[str, ...], otherwise: int) -> int:
    values = (getattr(pipe, name, None) for name in names)
    return next((int(value) for value in values if isinstance(value, int | float)), otherwise)


def _size(pipe: Any, defaults: Mapping[str, Any]) -> tuple[int, int] | None:
    if "width" in defaults and "height" in defaults:
        return int(defaults["width"]), int(defaults["height"])
    side = getattr(pipe, "default_sample_size", None)
    pixels = int(side) * _first(pipe, SPACE, 8) if isinstance(side, int) else None
    return None if pixels is None else (pixels, pixels)


def _multiple(pipe: Any) -> int:
    patches = [getattr(module.config, "patch_size", 1) for module in Model(pipe).denoisers.values()]
    sides = [patch[-1] if isinstance(patch, list | tuple) else patch for patch in patches]
    packed = 2 if hasattr(pipe, "_pack_latents") else 1  # Flux and its kin make one token of 2×2 latents
    return math.lcm(PIXELS, _first(pipe, SPACE, 8) * max([packed, *(int(side or 1) for side in sides)]))


def _edits(pipe: Any) -> frozenset[str]:
    from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting

    made = {"image": AutoPipelineForImage2Image, "mask": AutoPipelineForInpainting}
    return frozenset(name for name, auto in made.items() if _can(auto, pipe))


def _can(auto: Any, pipe: Any) -> bool:
    try:
        auto.from_pipe(pipe)
    except (ValueError, TypeError):  # diffusers has no such pipeline of this family, or it needs other parts
        return False
    return True
