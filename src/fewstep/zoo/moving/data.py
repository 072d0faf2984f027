"""What `zoo:moving-shapes` is trained on: clips drawn from seeds, their latents, and the tokens of their prompts.

Scene `i` is `sample_scene(default_rng(i))`. Clips are drawn when they are needed: one takes 2 ms, and all of them would
fill gigabytes. The rest is kept in numpy files that are mapped, not read whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from numpy.typing import NDArray
from torch import Tensor

from fewstep.files import replacing
from fewstep.zoo.arrays import chunk, made_in_parallel, mapped
from fewstep.zoo.moving import vae as whole
from fewstep.zoo.moving.layout import COLUMNS, TOKENS, layout
from fewstep.zoo.moving.pipeline import LATENT_SHAPE, PROMPT_TOKENS, build_tokenizer
from fewstep.zoo.moving.reading import ANSWERS, reading
from fewstep.zoo.moving.render import render
from fewstep.zoo.moving.scenes import Ask, describe, sample_scene
from fewstep.zoo.steps import bar
from fewstep.zoo.training import autocast
from fewstep.zoo.words import Tokens, as_tokens

WORDINGS = 4  # prompts kept for every scene
ENCODED_AT_ONCE = 20  # clips

Latents = NDArray[np.float16]
Layouts = NDArray[np.float16]
Readings = NDArray[np.int8]


def clips(seeds: Iterable[int], device: str) -> Tensor:
    """The clips of these scenes, float (n, 3, 17, 64, 64) in [-1, 1]."""
    drawn = np.stack([render(sample_scene(np.random.default_rng(seed))) for seed in seeds])
    moved = torch.from_numpy(drawn).to(device).permute(0, 4, 1, 2, 3)
    return moved.mul(2).sub(1).contiguous(memory_format=torch.channels_last_3d)


def prompts(out: Path, scenes: int) -> Tokens:
    """Token ids of `WORDINGS` prompts for every scene, shape (scenes, WORDINGS, PROMPT_TOKENS)."""
    return made_in_parallel(out / "tokens.npy", _word, scenes, (WORDINGS, PROMPT_TOKENS), np.int16)


def readings(out: Path, scenes: int) -> Readings:
    """What every word of those prompts is about, shape (scenes, WORDINGS, PROMPT_TOKENS, 5): `reading`."""
    return made_in_parallel(out / "readings.npy", _read, scenes, (WORDINGS, PROMPT_TOKENS, len(ANSWERS)), np.int8)


def layouts(out: Path, scenes: int) -> Layouts:
    """What every token of the clip shows, shape (scenes, 320, COLUMNS): `layout`."""
    return made_in_parallel(out / "layouts.npy", _lay_out, scenes, (TOKENS, COLUMNS), np.float16)


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


def _lay_out(start: int, scenes: int) -> Layouts:
    shown = [layout(sample_scene(np.random.default_rng(seed))) for seed in chunk(start, scenes)]
    return np.asarray(shown, dtype=np.float16)


def _word(start: int, scenes: int) -> Tokens:
    texts = [text for text, _ in _described(start, scenes)]
    return as_tokens(build_tokenizer(), texts, PROMPT_TOKENS).reshape(-1, WORDINGS, PROMPT_TOKENS)


def _read(start: int, scenes: int) -> Readings:
    tokenizer = build_tokenizer()
    read = [reading(tokenizer.tokenize(text), ask) for text, ask in _described(start, scenes)]
    return np.asarray(read).reshape(-1, WORDINGS, PROMPT_TOKENS, len(ANSWERS))


def _described(start: int, scenes: int) -> Iterator[tuple[str, Ask]]:
    """The `WORDINGS` prompts of each scene and what they ask for."""
    for seed in chunk(start, scenes):
        scene = sample_scene(np.random.default_rng(seed))
        yield from (describe(scene, np.random.default_rng((seed, wording))) for wording in range(WORDINGS))
