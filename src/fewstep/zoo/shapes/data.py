"""What `zoo:shapes` is trained on: pictures drawn from seeds, their latents, and the tokens of their prompts.

Scene `i` is `sample_scene(default_rng(i))`. Everything is kept in numpy files that are mapped, not read whole.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, FluxPipeline
from numpy.typing import NDArray
from torch import Tensor

from fewstep.files import replacing
from fewstep.zoo.arrays import chunk, made_in_parallel, mapped
from fewstep.zoo.shapes.layout import COLUMNS, GRID, layout
from fewstep.zoo.shapes.pipeline import LATENT_CHANNELS, PROMPT_TOKENS, build_tokenizer
from fewstep.zoo.shapes.reading import ANSWERS, reading
from fewstep.zoo.shapes.render import render
from fewstep.zoo.shapes.scenes import IMAGE_SIZE, describe, sample_scene
from fewstep.zoo.steps import bar
from fewstep.zoo.worded import Worded

LATENTS_AT_ONCE = 100  # pictures

Pixels = NDArray[np.uint8]
Latents = NDArray[np.float16]
Counts = NDArray[np.int8]

WORDED = Worded(
    sample=sample_scene,
    describe=describe,
    tokenizer=build_tokenizer,
    length=PROMPT_TOKENS,
    reading=reading,
    answers=len(ANSWERS),
    layout=layout,
    shape=(GRID * GRID, COLUMNS),
)


def pictures(out: Path, scenes: int) -> Pixels:
    """RGB, shape (scenes, 64, 64, 3)."""
    return made_in_parallel(out / "pictures.npy", _draw, scenes, (IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)


def counts(out: Path, scenes: int) -> Counts:
    """How many objects each scene holds, shape (scenes,)."""
    return made_in_parallel(out / "counts.npy", _count, scenes, (), np.int8)


@torch.no_grad()
def latents(out: Path, drawn: Pixels, vae: AutoencoderKL, device: str) -> Latents:
    """Packed latents, shape (scenes, 64, 48), shifted and scaled as the pipeline does it."""
    path, starts = out / "latents.npy", range(0, len(drawn), LATENTS_AT_ONCE)
    if not path.exists():
        with bar() as shown, replacing(path) as aside:
            kept = np.lib.format.open_memmap(
                aside, mode="w+", dtype=np.float16, shape=(len(drawn), GRID * GRID, 4 * LATENT_CHANNELS)
            )
            for low in shown.track(starts, description="latents"):
                mean = vae.encode(as_images(drawn[low : low + starts.step], device)).latent_dist.mean
                packed = pack((mean - vae.config["shift_factor"]) * vae.config["scaling_factor"])
                kept[low : low + len(packed)] = packed.cpu().numpy().astype(np.float16)
            kept.flush()
    return mapped(path)


def pack(latents: Tensor) -> Tensor:
    """(n, 12, 16, 16) → (n, 64, 48): each token holds a 2×2 patch, as `FluxPipeline` packs it."""
    n, channels, height, width = latents.shape
    packed: Tensor = FluxPipeline._pack_latents(latents, n, channels, height, width)
    return packed


def as_images(drawn: Pixels, device: str) -> Tensor:
    """uint8 (n, 64, 64, 3) → float (n, 3, 64, 64) in [-1, 1]."""
    images = torch.from_numpy(np.array(drawn)).to(device).permute(0, 3, 1, 2)
    return images.float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)


def _draw(start: int, scenes: int) -> Pixels:
    made = [render(sample_scene(np.random.default_rng(seed))) for seed in chunk(start, scenes)]
    return np.round(np.clip(made, 0, 1) * 255).astype(np.uint8)


def _count(start: int, scenes: int) -> Counts:
    held = [len(sample_scene(np.random.default_rng(seed)).things) for seed in chunk(start, scenes)]
    return np.asarray(held, dtype=np.int8)
