"""What `zoo:moving-shapes` is trained on: clips drawn from seeds, their latents, and the tokens of their prompts.

Scene `i` is `sample_scene(default_rng(i))`. Clips are drawn when they are needed: one takes 2 ms, and all of them would
fill gigabytes. The rest is kept in numpy files that are mapped, not read whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from numpy.typing import NDArray
from torch import Tensor

from fewstep.files import replacing
from fewstep.zoo.arrays import mapped
from fewstep.zoo.moving import vae as whole
from fewstep.zoo.moving.layout import COLUMNS, TOKENS, layout
from fewstep.zoo.moving.pipeline import LATENT_SHAPE, PROMPT_TOKENS, build_tokenizer
from fewstep.zoo.moving.reading import ANSWERS, reading
from fewstep.zoo.moving.render import render
from fewstep.zoo.moving.scenes import describe, sample_scene
from fewstep.zoo.steps import bar
from fewstep.zoo.training import autocast
from fewstep.zoo.worded import Worded

ENCODED_AT_ONCE = 20  # clips

Latents = NDArray[np.float16]

WORDED = Worded(
    sample=sample_scene,
    describe=describe,
    tokenizer=build_tokenizer,
    length=PROMPT_TOKENS,
    reading=reading,
    answers=len(ANSWERS),
    layout=layout,
    shape=(TOKENS, COLUMNS),
)


def clips(seeds: Iterable[int], device: str) -> Tensor:
    """The clips of these scenes, float (n, 3, 17, 64, 64) in [-1, 1]."""
    drawn = np.stack([render(sample_scene(np.random.default_rng(seed))) for seed in seeds])
    moved = torch.from_numpy(drawn).to(device).permute(0, 4, 1, 2, 3)
    return moved.mul(2).sub(1).contiguous(memory_format=torch.channels_last_3d)


@torch.no_grad()
def latents(out: Path, scenes: int, vae: AutoencoderKLWan, device: str) -> Latents:
    """Latents of every scene, shape (scenes, *LATENT_SHAPE), of the scale that the pipeline's transformer works in."""
    path, starts = out / "latents.npy", range(0, scenes, ENCODED_AT_ONCE)
    if not path.exists():
        centre, spread = (
            torch.tensor(vae.config[name], device=device).view(-1, 1, 1, 1) for name in ("latents_mean", "latents_std")
        )
        with bar() as shown, replacing(path) as aside:
            kept = np.lib.format.open_memmap(aside, mode="w+", dtype=np.float16, shape=(scenes, *LATENT_SHAPE))
            for low in shown.track(starts, description="latents"):
                with autocast(device):
                    mean, _ = whole.encode(vae, clips(range(low, min(low + ENCODED_AT_ONCE, scenes)), device))
                kept[low : low + len(mean)] = ((mean.float() - centre) / spread).cpu().numpy()
            kept.flush()
    return mapped(path)
