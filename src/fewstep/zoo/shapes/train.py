"""The recipe that makes `zoo:shapes` from nothing: pictures → VAE → latents → text encoders and transformer → folder.

Every stage leaves its result in the run's folder and is skipped when it is already there; the two trainings save a
checkpoint at intervals and go on from it, so a run that is killed is started again with the same command.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FluxPipeline
from torch import Tensor, nn

from fewstep.errors import InputError
from fewstep.files import read_json, replacing, write_json
from fewstep.machine import versions
from fewstep.models.manifest import Manifest
from fewstep.zoo.shapes import data
from fewstep.zoo.shapes.data import WORDINGS, Latents, Pixels, Tokens, as_images, as_tokens
from fewstep.zoo.shapes.pipeline import CALL, PROMPT_TOKENS, build_pipeline, build_vae
from fewstep.zoo.shapes.scenes import IMAGE_SIZE
from fewstep.zoo.steps import Steps


@dataclass(frozen=True)
class Settings:
    """One run. The defaults are those of the shipped weights; docs/log.md says what differed."""

    scenes: int = 64_000
    vae_steps: int = 1500
    vae_batch: int = 32
    vae_rate: float = 1e-3
    vae_kl: float = 1e-4
    teacher_steps: int = 2800
    teacher_batch: int = 64
    muon_rate: float = 5e-3  # the matrices of the transformer's blocks
    adam_rate: float = 1e-3  # everything else
    prompt_dropout: float = 0.1  # how often a prompt is left out, which is what guidance needs
    ema: float = 0.999
    save_every: int = 100
    compile: bool = True
    seed: int = 0


def train(out: Path, settings: Settings = Settings(), device: str = "cpu") -> Path:
    """Makes the pipeline and returns its folder, `out/pipeline`.

    Raises:
        InputError: `out` holds a run with other settings.
    """
    _same_run(out, settings)
    drawn = data.pictures(out, settings.scenes)
    vae = _trained_vae(out, settings, drawn, device)
    latents, tokens = data.latents(out, drawn, vae, device), data.prompts(out, settings.scenes)
    return _trained_pipeline(out, settings, vae, latents, tokens, device)


def _same_run(out: Path, settings: Settings) -> None:
    kept, now = out / "settings.json", asdict(settings)
    if kept.exists() and read_json(kept) != now:
        raise InputError(f"{kept} is of a run with other settings: take another folder, or delete it to start anew.")
    write_json(kept, now)


def _trained_vae(out: Path, settings: Settings, drawn: Pixels, device: str) -> AutoencoderKL:
    """Trained by L1 and L2 with a faint KL, then told its own scale: latents of mean 0 and deviation 1."""
    folder = out / "vae"
    if folder.exists():
        return AutoencoderKL.from_pretrained(folder).to(device)
    torch.manual_seed(settings.seed)
    vae = build_vae()
    # Sharp posteriors from the start: with unit noise on them the decoder learns to ignore the latents.
    nn.init.constant_(vae.encoder.conv_out.bias[vae.config["latent_channels"] :], -6.0)
    vae = vae.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=settings.vae_rate, betas=(0.9, 0.98), weight_decay=1e-4)

    # Not compiled: with torch 2.13 the compiled bfloat16 VAE in channels-last form learned nothing on a CPU.
    def loss(step: int) -> Tensor:
        rng = np.random.default_rng((settings.seed, step))
        images = as_images(drawn[np.sort(rng.integers(0, len(drawn), settings.vae_batch))], device)
        with torch.autocast(device, torch.bfloat16):
            posterior = vae.encode(images).latent_dist
            decoded = vae.decode(posterior.sample()).sample
        error, mean, log_var = decoded.float() - images, posterior.mean.float(), posterior.logvar.float()
        kl = 0.5 * (mean**2 + log_var.exp() - 1 - log_var).mean()
        total: Tensor = error.abs().mean() + 2 * (error**2).mean() + settings.vae_kl * kl
        return total

    steps = Steps(out / "vae.pt", settings.vae_steps, settings.save_every, decay_from=0.4)
    steps.run("VAE", [vae], [optimizer], loss)
    with torch.no_grad():
        means = vae.encode(as_images(drawn[:2000:4], device)).latent_dist.mean
    vae.register_to_config(shift_factor=float(means.mean()), scaling_factor=float(1 / means.std()))
    with replacing(folder) as aside:
        vae.save_pretrained(aside)
    return vae


def _trained_pipeline(
    out: Path, settings: Settings, vae: AutoencoderKL, latents: Latents, tokens: Tokens, device: str
) -> Path:
    """Flow matching (arXiv 2210.02747): the transformer predicts v = noise − x0 at x_t = (1 − t)·x0 + t·noise."""
    folder = out / "pipeline"
    if folder.exists():
        return folder
    torch.manual_seed(settings.seed)
    pipe = build_pipeline()
    pipe.register_modules(vae=vae)
    pipe.to(device)
    parts = (pipe.transformer, pipe.text_encoder_2, pipe.text_encoder)
    if device == "cpu":  # there the fused attention's backward takes more than half of a step in bfloat16
        pipe.transformer.set_attention_backend("_native_math")
    predict: Callable[..., Tensor] = partial(_velocity, pipe, *_positions(device))
    if settings.compile:
        predict = torch.compile(predict)
    empty = torch.from_numpy(as_tokens(pipe.tokenizer, [""])).to(device)

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng((settings.seed, step))
        noise_rng = torch.Generator(device).manual_seed(settings.seed * 1_000_003 + step)
        rows = np.sort(rng.integers(0, len(latents), settings.teacher_batch))
        x0 = torch.from_numpy(latents[rows].astype(np.float32)).to(device)
        ids = torch.from_numpy(tokens[rows, rng.integers(0, WORDINGS, len(rows))]).to(device)
        dropped = torch.from_numpy(rng.random(len(rows)) < settings.prompt_dropout).to(device)
        ids = torch.where(dropped[:, None], empty, ids).long()
        noise = torch.randn(x0.shape, generator=noise_rng, device=device)
        t = torch.sigmoid(torch.randn(len(rows), generator=noise_rng, device=device))
        x_t = torch.lerp(x0, noise, t[:, None, None])
        with torch.autocast(device, torch.bfloat16):
            v = predict(x_t, ids, t)
        return F.mse_loss(v.float(), noise - x0)

    steps = Steps(out / "teacher.pt", settings.teacher_steps, settings.save_every, decay_from=0.5, ema=settings.ema)
    averages = steps.run("teacher", list(parts), _optimizers(parts, settings), loss)
    for part, average in zip(parts, averages, strict=True):
        part.load_state_dict(average)
    with replacing(folder) as aside:
        write_pipeline(pipe.to("cpu"), aside, asdict(settings))
    return folder


def write_pipeline(pipe: FluxPipeline, folder: Path, settings: dict[str, Any]) -> None:
    """The folder as it is shipped: the transformer stored in float16, which diffusers loads as float32."""
    pipe.save_pretrained(folder)
    copy.deepcopy(pipe.transformer).half().save_pretrained(folder / "transformer")
    made_by = {"command": "fewstep zoo train shapes", "settings": settings, "versions": versions()}
    Manifest("shapes", call=CALL, made_by=made_by).write(folder)


def _positions(device: str) -> tuple[Tensor, Tensor]:
    side = IMAGE_SIZE // 8
    image = FluxPipeline._prepare_latent_image_ids(1, side, side, torch.device(device), torch.float32)
    return torch.zeros(PROMPT_TOKENS, 3, device=device), image


def _velocity(pipe: FluxPipeline, text_ids: Tensor, image_ids: Tensor, x_t: Tensor, ids: Tensor, t: Tensor) -> Tensor:
    return pipe.transformer(  # type: ignore[no-any-return]
        hidden_states=x_t,
        timestep=t,
        pooled_projections=pipe.text_encoder(input_ids=ids).pooler_output,
        encoder_hidden_states=pipe.text_encoder_2(input_ids=ids)[0],
        txt_ids=text_ids,
        img_ids=image_ids,
        return_dict=False,
    )[0]


def _optimizers(parts: tuple[nn.Module, ...], settings: Settings) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the transformer's blocks, AdamW for all else."""
    matrices = [p for n, p in parts[0].named_parameters() if "transformer_blocks" in n and p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for part in parts for p in part.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=settings.muon_rate, weight_decay=0.01),
        torch.optim.AdamW(others, lr=settings.adam_rate, betas=(0.9, 0.98), weight_decay=0.01),
    ]
