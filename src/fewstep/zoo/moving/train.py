"""The recipe that makes `zoo:moving-shapes` from nothing: clips → VAE → latents → text encoder → transformer → folder.

Every stage leaves its result in the run's folder and is skipped when it is already there; the trainings save a
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
from diffusers import AutoencoderKLWan, WanPipeline
from diffusers.models.autoencoders.autoencoder_kl_wan import WanRMS_norm
from numpy.typing import NDArray
from torch import Tensor, nn

from fewstep.distill.engine.precision import compiled, trained_attention
from fewstep.files import replacing
from fewstep.machine import versions
from fewstep.models.manifest import Manifest
from fewstep.zoo.moving import data, vae
from fewstep.zoo.moving.data import WORDED, Latents
from fewstep.zoo.moving.pipeline import CALL, PROMPT_TOKENS, build_pipeline
from fewstep.zoo.moving.reading import COLUMNS, QUESTIONS
from fewstep.zoo.moving.scenes import FRAMES
from fewstep.zoo.steps import Steps
from fewstep.zoo.training import Course, autocast, go_on_from, kernels, matrices_in, optimizers, same_run
from fewstep.zoo.worded import WORDINGS
from fewstep.zoo.words import as_tokens, misread

DECAY_FROM = 0.3  # of the steps: from there on the rates fall
MEASURED = 256  # clips whose latents tell the VAE its scale
# The VAE learns from whole clips and from more and shorter ones in turns: frames, and times the batch. Whole clips
# alone show it few objects.
CROPS = ((FRAMES, 1), (5, 3))
TIMESTEPS = 1000  # the transformer is told t times this


@dataclass(frozen=True)
class Settings(Course):
    """One run."""

    vae_batch: int = 4
    vae_muon_rate: float = 4e-3  # the kernels of its convolutions
    vae_adam_rate: float = 1e-3  # everything else of it
    text_steps: int = 500
    teacher_steps: int = 8000
    teacher_batch: int = 32
    pairs: float = 0.6  # share of the batches that shows two objects: they are the harder clips
    noise_mean: float = 1.8  # of logit(t): most of the samples are where it is decided what moves where
    noise_std: float = 1.4


def train(out: Path, settings: Settings = Settings(), device: str = "cpu") -> Path:
    """Makes the pipeline and returns its folder, `out/pipeline`.

    Raises:
        InputError: `out` holds a run with other settings, or `settings.start` is no pipeline of this architecture.
    """
    same_run(out, asdict(settings))
    pipe = _start(settings).to(device)
    pipe.register_modules(vae=_trained_vae(out, settings, pipe.vae, device))
    latents = data.latents(out, settings.scenes, pipe.vae, device)
    _teach_to_read(out, settings, pipe, device)
    return _trained_pipeline(out, settings, pipe, latents, device)


def _start(settings: Settings) -> WanPipeline:
    """Random weights, or those of `settings.start`."""
    torch.manual_seed(settings.seed)
    pipe = build_pipeline()
    if settings.start is None:
        # Sharp posteriors from the start: with unit noise on them the decoder learns to ignore the latents.
        nn.init.constant_(pipe.vae.quant_conv.bias[pipe.vae.config["z_dim"] :], -6.0)
    else:
        go_on_from(pipe, settings.start, fresh=("text_encoder",) if settings.new_text else ())
    return pipe


def _trained_vae(out: Path, settings: Settings, model: AutoencoderKLWan, device: str) -> AutoencoderKLWan:
    """Trained by L1 and L2 with a faint KL, then told its own scale: each channel of mean 0 and deviation 1.

    Errors on vivid pixels, which are the objects', count up to five times. Of one that was trained before, only the
    decoder goes on: its latents keep their meaning for the transformer.
    """
    folder = out / "vae"
    if folder.exists():
        return _channels_last(AutoencoderKLWan.from_pretrained(folder).to(device))
    model = _channels_last(model.to(device))
    for part in (model.encoder, model.quant_conv):
        part.requires_grad_(settings.start is None)
    taught = optimizers([model], kernels(model), muon_rate=settings.vae_muon_rate, adam_rate=settings.vae_adam_rate)

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng((settings.seed, step))
        frames, more = CROPS[step % len(CROPS)]
        clips = data.clips(rng.integers(0, settings.scenes, more * settings.vae_batch), device)
        first = int(rng.integers(0, FRAMES - frames + 1))
        clips = clips[:, :, first : first + frames]
        with autocast(device):
            mean, log_variance = (part.float() for part in vae.encode(model, clips))
            noise = torch.randn(mean.shape, generator=_noise(settings, step, device), device=device)
            decoded = vae.decode(model, mean + noise * torch.exp(0.5 * log_variance))
        chroma = clips.amax(1, keepdim=True) - clips.amin(1, keepdim=True)
        error = (decoded.float() - clips) * (1 + 2 * chroma)
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
        total: Tensor = error.abs().mean() + 2 * (error**2).mean() + settings.vae_kl * kl
        return total

    steps = Steps(out / "vae.pt", settings.vae_steps, settings.save_every, decay_from=0.4)
    # Only the norms are compiled: with torch 2.13 on a CPU, compiled convolutions take nine times as long.
    with compiled([part for part in model.modules() if isinstance(part, WanRMS_norm)], settings.compile):
        steps.run("VAE", [model], taught, loss)
    model.load_state_dict({name: value.half() for name, value in model.state_dict().items()})  # as it will be stored
    if settings.start is None:
        _measure(model, settings, device)
    with replacing(folder) as aside:
        copy.deepcopy(model).half().save_pretrained(aside)
    return _channels_last(AutoencoderKLWan.from_pretrained(folder).to(device))


@torch.no_grad()
def _measure(model: AutoencoderKLWan, settings: Settings, device: str) -> None:
    """Tells the VAE the mean and the deviation of each channel of its latents."""
    scenes = range(min(MEASURED, settings.scenes))
    parts = [scenes[low : low + data.ENCODED_AT_ONCE] for low in scenes[:: data.ENCODED_AT_ONCE]]
    means = torch.cat([vae.encode(model, data.clips(part, device))[0] for part in parts])
    centre, spread = means.mean((0, 2, 3, 4)), means.std((0, 2, 3, 4))
    model.register_to_config(latents_mean=centre.tolist(), latents_std=spread.tolist())


def _channels_last(model: AutoencoderKLWan) -> AutoencoderKLWan:
    """The order in memory in which convolutions are quickest."""
    for part in model.modules():
        if isinstance(part, nn.Conv3d | nn.Conv2d):
            order = torch.channels_last_3d if isinstance(part, nn.Conv3d) else torch.channels_last
            part.weight.data = part.weight.data.contiguous(memory_format=order)
    return model


def _teach_to_read(out: Path, settings: Settings, pipe: WanPipeline, device: str) -> None:
    """A linear head, which is thrown away, tells from every token what its word is about. After this the text encoder
    does not change; that of a pipeline that is gone on from stays as it is, unless `new_text`."""
    encoder = pipe.text_encoder
    if settings.start is None or settings.new_text:
        tokens, readings = WORDED.prompts(out, settings.scenes), WORDED.readings(out, settings.scenes)
        head = nn.Linear(encoder.config.d_model, COLUMNS).to(device)

        def loss(step: int) -> Tensor:
            rng = np.random.default_rng((settings.seed, step))
            rows = rng.integers(0, len(tokens), settings.text_batch)
            wordings = rng.integers(0, WORDINGS, settings.text_batch)
            ids = torch.from_numpy(tokens[rows, wordings]).to(device).long()
            right = torch.from_numpy(readings[rows, wordings]).to(device).long()
            return misread(head(encoder(ids, (ids != 0).long())[0]), right, QUESTIONS)

        trained = [*encoder.parameters(), *head.parameters()]
        optimizer = torch.optim.AdamW(trained, lr=settings.text_rate, weight_decay=0.01)
        steps = Steps(out / "text.pt", settings.text_steps, settings.save_every, DECAY_FROM)
        steps.run("text encoder", [encoder, head], [optimizer], loss)
    encoder.requires_grad_(False)


def _trained_pipeline(out: Path, settings: Settings, pipe: WanPipeline, latents: Latents, device: str) -> Path:
    """Flow matching (arXiv 2210.02747): the transformer predicts v = noise − x0 at x_t = (1 − t)·x0 + t·noise.

    Noise levels are logit-normal (arXiv 2403.03206, section 3.1), with most of them where it is decided what moves
    where. At first the transformer must also tell from its middle what the clean clip shows (`layout`), by a linear
    head that is thrown away: the objects come out earlier so.
    """
    folder = out / "pipeline"
    if folder.exists():
        return folder
    tokens, layouts = WORDED.prompts(out, settings.scenes), WORDED.layouts(out, settings.scenes)
    predict: Callable[..., tuple[Tensor, Tensor]] = partial(_velocity_and_middle, pipe)
    if settings.compile:
        predict = torch.compile(predict)
    empty = torch.from_numpy(as_tokens(pipe.tokenizer, [""], PROMPT_TOKENS)).to(device)
    drawn = _drawn(len(latents), settings.pairs)
    head = nn.Linear(pipe.transformer.proj_out.in_features, layouts.shape[-1]).to(device)
    seen = torch.from_numpy(layouts[:1000].astype(np.float32)).to(device)
    centre, spread = seen.mean((0, 1)), seen.std((0, 1)) + 1e-3

    def loss(step: int) -> Tensor:
        rng, noise_rng = np.random.default_rng((settings.seed, step)), _noise(settings, step, device)
        rows = np.sort(rng.choice(len(latents), settings.teacher_batch, p=drawn))
        x0 = torch.from_numpy(latents[rows].astype(np.float32)).to(device)
        shown = torch.from_numpy(layouts[rows].astype(np.float32)).to(device)
        ids = torch.from_numpy(tokens[rows, rng.integers(0, WORDINGS, len(rows))]).to(device)
        dropped = torch.from_numpy(rng.random(len(rows)) < settings.prompt_dropout).to(device)
        ids = torch.where(dropped[:, None], empty, ids).long()
        noise = torch.randn(x0.shape, generator=noise_rng, device=device)
        normal = torch.randn(len(rows), generator=noise_rng, device=device)
        t = torch.sigmoid(settings.noise_std * normal + settings.noise_mean)
        x_t = torch.lerp(x0, noise, t[:, None, None, None, None])
        with autocast(device):
            v, middle = predict(x_t, ids, t)
            told = head(middle)
        aligned = settings.align * max(0.0, 1 - step / (DECAY_FROM * settings.teacher_steps))
        return F.mse_loss(v.float(), noise - x0) + aligned * F.mse_loss(told.float(), (shown - centre) / spread)

    steps = Steps(out / "teacher.pt", settings.teacher_steps, settings.save_every, DECAY_FROM, ema=settings.ema)
    rates = {"muon_rate": settings.rate * settings.muon_rate, "adam_rate": settings.rate * settings.adam_rate}
    taught = optimizers([pipe.transformer, head], matrices_in(pipe.transformer, "blocks"), **rates)
    with trained_attention([pipe.transformer], torch.device(device)):
        averages = steps.run("teacher", [pipe.transformer, head], taught, loss)
    pipe.transformer.load_state_dict(averages[0])
    with replacing(folder) as aside:
        write_pipeline(pipe.to("cpu"), aside, asdict(settings))
    return folder


def _drawn(scenes: int, pairs: float) -> NDArray[np.float64]:
    """How often each scene is drawn, (scenes,): those of two objects together `pairs` of the time."""
    paired = np.array([len(WORDED.scene(seed).things) == 2 for seed in range(scenes)])
    often = np.where(paired, pairs / max(paired.sum(), 1), (1 - pairs) / max((~paired).sum(), 1))
    shares: NDArray[np.float64] = often / often.sum()
    return shares


def write_pipeline(pipe: WanPipeline, folder: Path, settings: dict[str, Any]) -> None:
    """The folder as it is shipped: transformer and VAE stored in float16, which diffusers loads as float32."""
    pipe.save_pretrained(folder)
    for name in ("transformer", "vae"):
        copy.deepcopy(getattr(pipe, name)).half().save_pretrained(folder / name)
    made_by = {"command": "fewstep zoo train moving-shapes", "settings": settings, "versions": versions()}
    Manifest("moving-shapes", call=CALL, made_by=made_by).write(folder)


def _velocity_and_middle(pipe: WanPipeline, x_t: Tensor, ids: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """What the transformer predicts, and its tokens half-way through, (n, 320, inner_dim)."""
    blocks = pipe.transformer.blocks
    mask = ids != 0
    kept: list[Tensor] = []
    with blocks[len(blocks) // 2 - 1].register_forward_hook(lambda block, given, result: kept.append(result)):
        v = pipe.transformer(
            hidden_states=x_t,
            timestep=TIMESTEPS * t,
            # Padding is blanked, as `WanPipeline.encode_prompt` does it.
            encoder_hidden_states=pipe.text_encoder(ids, mask.long())[0] * mask[..., None],
            return_dict=False,
        )[0]
    return v, kept[0]


def _noise(settings: Settings, step: int, device: str) -> torch.Generator:
    return torch.Generator(device).manual_seed(settings.seed * 1_000_003 + step)
