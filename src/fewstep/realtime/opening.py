"""The first chunk of a prompt: what it lacks stays away, so several are made at once, and the one that answers the
prompt best goes on.

Which one that is, the model can tell, as in classification by a diffusion model (arXiv 2303.16203): what is there, it
guesses better from noise with a prompt that says so than with one that asks for nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fewstep.diffusion.schedule import Denoiser

CANDIDATES = 4
TIMES, NOISES = (0.93, 0.75), 2  # of a flow, at which it is decided what there is; and how often each is asked


def best(denoiser: Denoiser, chunks: Tensor, cond: Any, nothing: Any, generator: torch.Generator) -> Tensor:
    """The chunk of (n, …) that shows best what `cond` asks for, (1, …): of which the denoiser misses least from noise,
    as a part of what it misses when it is told `nothing`. All get the same noise."""
    missed = torch.zeros(len(chunks), device=chunks.device)
    for t in TIMES:
        for _ in range(NOISES):
            noise = torch.randn(chunks[:1].shape, generator=generator).to(chunks).expand_as(chunks)
            x_t = denoiser.schedule.add_noise(chunks, noise, t)
            told, untold = (_error(denoiser, chunks, x_t, t, each) for each in (cond, nothing))
            missed += told / untold
    return chunks[missed.argmin()][None]


def _error(denoiser: Denoiser, x0: Tensor, x_t: Tensor, t: float, cond: Any) -> Tensor:
    """Mean squared, of each sample, (n,)."""
    guess = denoiser.schedule.to_x0(denoiser(x_t, t, cond), x_t, t)
    return (guess - x0).float().square().flatten(1).mean(1)
