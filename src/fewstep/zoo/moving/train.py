"""The recipe that makes `zoo:moving-shapes` from nothing: clips → VAE → latents → text encoder → transformer → folder.

Every stage leaves its result in the run's folder and is skipped when it is already there; the trainings save a
checkpoint at intervals and go on from it, so a run that is killed is started again with the same command.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanRMS_norm
from torch import Tensor, nn

from fewstep.distill.engine.precision import compiled
from fewstep.files import replacing
from fewstep.zoo.moving import data, vae
from fewstep.zoo.moving.pipeline import build_pipeline
from fewstep.zoo.steps import Steps
from fewstep.zoo.training import autocast, same_run


@dataclass(frozen=True)
class Settings:
    """One run."""

    scenes: int = 20_000
    vae_steps: int = 4000
    vae_batch: int = 4
    vae_rate: float = 1e-3
    vae_kl: float = 1e-4
    save_every: int = 100
    compile: bool = True
    seed: int = 0


def train(out: Path, settings: Settings = Settings(), device: str = "cpu") -> Path:
    same_run(out, settings)
    torch.manual_seed(settings.seed)
    pipe = build_pipeline()
    # Sharp posteriors from the start: with unit noise on them the decoder learns to ignore the latents.
    nn.init.constant_(pipe.vae.quant_conv.bias[pipe.vae.config["z_dim"] :], -6.0)
    _trained_vae(out, settings, pipe.vae, device)
    return out


def _trained_vae(out: Path, settings: Settings, model: AutoencoderKLWan, device: str) -> AutoencoderKLWan:
    """Trained by L1 and L2 with a faint KL, then told its own scale: latents of mean 0 and deviation 1.

    Errors on vivid pixels, which are the objects', count up to five times.
    """
    folder = out / "vae"
    if folder.exists():
        return AutoencoderKLWan.from_pretrained(folder).to(device)
    model = channels_last(model.to(device))
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.vae_rate, betas=(0.9, 0.98), weight_decay=1e-4)

    # Only the norms are compiled: with torch 2.13 on a CPU, compiled convolutions take nine times as long.
    def loss(step: int) -> Tensor:
        rng = np.random.default_rng((settings.seed, step))
        clips = data.clips(rng.integers(0, settings.scenes, settings.vae_batch), device)
        with autocast(device):
            mean, log_variance = (part.float() for part in vae.encode(model, clips))
            noise = torch.randn(mean.shape, generator=_noise(settings, step, device), device=device)
            decoded = vae.decode(model, mean + noise * torch.exp(0.5 * log_variance))
        error = (decoded.float() - clips) * (1 + 2 * (clips.amax(1, keepdim=True) - clips.amin(1, keepdim=True)))
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
        total: Tensor = error.abs().mean() + 2 * (error**2).mean() + settings.vae_kl * kl
        return total

    steps = Steps(out / "vae.pt", settings.vae_steps, settings.save_every, decay_from=0.4)
    with compiled([part for part in model.modules() if isinstance(part, WanRMS_norm)], settings.compile):
        steps.run("VAE", [model], [optimizer], loss)
    return model


def channels_last(model: AutoencoderKLWan) -> AutoencoderKLWan:
    """The order in memory in which convolutions are quickest."""
    for part in model.modules():
        if isinstance(part, nn.Conv3d | nn.Conv2d):
            order = torch.channels_last_3d if isinstance(part, nn.Conv3d) else torch.channels_last
            part.weight.data = part.weight.data.contiguous(memory_format=order)
    return model


def _noise(settings: Settings, step: int, device: str) -> torch.Generator:
    return torch.Generator(device).manual_seed(settings.seed * 1_000_003 + step)
