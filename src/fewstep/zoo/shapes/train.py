"""The recipe that makes `zoo:shapes` from nothing: pictures → VAE → latents → text encoders → transformer → folder.

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
from diffusers import AutoencoderKL, FluxPipeline
from numpy.typing import NDArray
from torch import Tensor, nn

from fewstep.distill.engine.precision import trained_attention
from fewstep.files import replacing
from fewstep.machine import versions
from fewstep.models.manifest import Manifest
from fewstep.zoo.shapes import data
from fewstep.zoo.shapes.data import WORDED, Counts, Latents, Pixels, as_images
from fewstep.zoo.shapes.pipeline import CALL, PROMPT_TOKENS, build_pipeline
from fewstep.zoo.shapes.reading import COLUMNS, QUESTIONS
from fewstep.zoo.shapes.scenes import IMAGE_SIZE, SHAPES
from fewstep.zoo.steps import Steps
from fewstep.zoo.training import Course, autocast, go_on_from, matrices_in, optimizers, same_run
from fewstep.zoo.worded import WORDINGS
from fewstep.zoo.words import as_tokens, misread

TEXT_ENCODERS = ("text_encoder_2", "text_encoder")  # the T5, whose tokens are read, and the CLIP
DECAY_FROM = 0.3  # of the teacher's steps: from there on the rates fall
NOISE_MEAN, NOISE_STD = 1.4, 1.2  # of logit(t): half of the samples are where it is decided how many objects there are
# How often a batch holds scenes of so many objects: the harder ones more often than prompts ask for them.
DRAWN = {1: 0.2, 2: 0.4, 3: 0.2, 4: 0.2}
GHOST, GHOST_FROM = 0.4, 0.5  # how strong another picture's objects show in a noised one at most, and from which t on


@dataclass(frozen=True)
class Settings(Course):
    """One run. The shipped weights were made in several, each going on from the one before: see docs/log.md."""

    scenes: int = 64_000
    vae_steps: int = 3000
    vae_rate: float = 1e-3


def train(out: Path, settings: Settings = Settings(), device: str = "cpu") -> Path:
    """Makes the pipeline and returns its folder, `out/pipeline`.

    Raises:
        InputError: `out` holds a run with other settings, or `settings.start` is no pipeline of this architecture.
    """
    same_run(out, asdict(settings))
    pipe = _start(settings).to(device)
    drawn = data.pictures(out, settings.scenes)
    pipe.register_modules(vae=_trained_vae(out, settings, pipe.vae, drawn, device))
    latents = data.latents(out, drawn, pipe.vae, device)
    _teach_to_read(out, settings, pipe, device)
    return _trained_pipeline(out, settings, pipe, latents, device)


def _start(settings: Settings) -> FluxPipeline:
    """Random weights, or those of `settings.start`."""
    torch.manual_seed(settings.seed)
    pipe = build_pipeline()
    if settings.start is None:
        # Sharp posteriors from the start: with unit noise on them the decoder learns to ignore the latents.
        nn.init.constant_(pipe.vae.encoder.conv_out.bias[pipe.vae.config["latent_channels"] :], -6.0)
        return pipe
    go_on_from(pipe, settings.start, fresh=TEXT_ENCODERS if settings.new_text else ())
    return pipe


def _trained_vae(out: Path, settings: Settings, vae: AutoencoderKL, drawn: Pixels, device: str) -> AutoencoderKL:
    """Trained by L1 and L2 with a faint KL, then told its own scale: latents of mean 0 and deviation 1.

    Of one that was trained before, only the decoder goes on: its latents keep their meaning for the transformer.
    """
    folder = out / "vae"
    if folder.exists():
        return AutoencoderKL.from_pretrained(folder).to(device)
    vae = vae.to(device, memory_format=torch.channels_last)
    vae.encoder.requires_grad_(settings.start is None)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=settings.vae_rate, betas=(0.9, 0.98), weight_decay=1e-4)

    # Not compiled: with torch 2.13 on a CPU the compiled decoder's gradients are wrong (docs/log.md).
    def loss(step: int) -> Tensor:
        rng = np.random.default_rng((settings.seed, step))
        images = as_images(drawn[np.sort(rng.integers(0, len(drawn), settings.vae_batch))], device)
        with autocast(device):
            posterior = vae.encode(images).latent_dist
            decoded = vae.decode(posterior.sample()).sample
        error, mean, log_var = decoded.float() - images, posterior.mean.float(), posterior.logvar.float()
        kl = 0.5 * (mean**2 + log_var.exp() - 1 - log_var).mean()
        total: Tensor = error.abs().mean() + 2 * (error**2).mean() + settings.vae_kl * kl
        return total

    steps = Steps(out / "vae.pt", settings.vae_steps, settings.save_every, decay_from=0.4)
    steps.run("VAE", [vae], [optimizer], loss)
    if settings.start is None:
        with torch.no_grad():
            means = vae.encode(as_images(drawn[:2000:4], device)).latent_dist.mean
        vae.register_to_config(shift_factor=float(means.mean()), scaling_factor=float(1 / means.std()))
    with replacing(folder) as aside:
        vae.save_pretrained(aside)
    return vae


def _teach_to_read(out: Path, settings: Settings, pipe: FluxPipeline, device: str) -> None:
    """A linear head tells from every token of the T5 what its word is about, another from the CLIP's vector what the
    first word is about and the last. The heads are thrown away. After this the text encoders do not change: those of a
    pipeline that is gone on from stay as they are, unless `new_text`."""
    parts = [getattr(pipe, name) for name in TEXT_ENCODERS]
    taught = settings.start is None or settings.new_text
    for part in parts:
        part.requires_grad_(taught)
    if not taught:
        return
    tokens, readings = WORDED.prompts(out, settings.scenes), WORDED.readings(out, settings.scenes)
    of_words = nn.Linear(pipe.text_encoder_2.config.d_model, COLUMNS).to(device)
    of_all = nn.Linear(pipe.text_encoder.config.hidden_size, 2 * COLUMNS).to(device)

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng((settings.seed, step))
        rows, wordings = (
            rng.integers(0, len(tokens), settings.text_batch),
            rng.integers(0, WORDINGS, settings.text_batch),
        )
        ids = torch.from_numpy(tokens[rows, wordings]).to(device).long()
        right = torch.from_numpy(readings[rows, wordings]).to(device).long()
        words = of_words(pipe.text_encoder_2(input_ids=ids)[0])
        ends = of_all(pipe.text_encoder(input_ids=ids).pooler_output).unflatten(-1, (2, COLUMNS))
        return misread(words, right, QUESTIONS) + misread(ends, right[:, [0, -1]], QUESTIONS)

    trained = [*parts, of_words, of_all]
    optimizer = torch.optim.AdamW(
        [p for m in trained for p in m.parameters()], lr=settings.text_rate, weight_decay=0.01
    )
    steps = Steps(out / "text.pt", settings.text_steps, settings.save_every, DECAY_FROM)
    steps.run("text encoders", trained, [optimizer], loss)
    for part in parts:
        part.requires_grad_(False)


def _trained_pipeline(out: Path, settings: Settings, pipe: FluxPipeline, latents: Latents, device: str) -> Path:
    """Flow matching (arXiv 2210.02747): the transformer predicts v = noise − x0 at x_t = (1 − t)·x0 + t·noise.

    Noise levels are logit-normal (arXiv 2403.03206, section 3.1), with most of them where the picture's composition is
    decided: a prompt that is not met has nearly always been lost between t = 0.95 and 0.75.
    There, ghosts of other objects stand in x_t, and v leads past them to x0: a sampler's own x_t has such half-drawn
    objects, which noised pictures have not, and they grew to one object too many.
    At first it must also tell from its middle what the clean picture shows (`layout`), by a linear head that is thrown
    away: the objects come out earlier so.
    """
    folder = out / "pipeline"
    if folder.exists():
        return folder
    tokens, layouts = WORDED.prompts(out, settings.scenes), WORDED.layouts(out, settings.scenes)
    predict: Callable[..., tuple[Tensor, Tensor]] = partial(_velocity_and_middle, pipe, *_positions(device))
    if settings.compile:
        predict = torch.compile(predict)
    empty = torch.from_numpy(as_tokens(pipe.tokenizer, [""], PROMPT_TOKENS)).to(device)
    ends = ends_of_parts(data.counts(out, settings.scenes))
    head = nn.Linear(pipe.transformer.inner_dim, layouts.shape[-1]).to(device)
    seen = torch.from_numpy(layouts[:4000].astype(np.float32)).to(device)
    centre, spread = seen.mean((0, 1)), seen.std((0, 1)) + 1e-3

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng((settings.seed, step))
        noise_rng = torch.Generator(device).manual_seed(settings.seed * 1_000_003 + step)
        rows = np.sort(np.searchsorted(ends, rng.random(settings.teacher_batch), side="right"))
        x0 = torch.from_numpy(latents[rows].astype(np.float32)).to(device)
        shown = torch.from_numpy(layouts[rows].astype(np.float32)).to(device)
        ids = torch.from_numpy(tokens[rows, rng.integers(0, WORDINGS, len(rows))]).to(device)
        dropped = torch.from_numpy(rng.random(len(rows)) < settings.prompt_dropout).to(device)
        ids = torch.where(dropped[:, None], empty, ids).long()
        noise = torch.randn(x0.shape, generator=noise_rng, device=device)
        t = torch.sigmoid(NOISE_STD * torch.randn(len(rows), generator=noise_rng, device=device) + NOISE_MEAN)
        strength = GHOST * torch.rand(len(rows), generator=noise_rng, device=device)
        x_t = torch.lerp(haunted(x0, shown, t, strength), noise, t[:, None, None])
        with autocast(device):
            v, middle = predict(x_t, ids, t)
            told = head(middle)
        aligned = settings.align * max(0.0, 1 - step / (DECAY_FROM * settings.teacher_steps))
        drawing = F.mse_loss(v.float(), (x_t - x0) / t[:, None, None])
        return drawing + aligned * F.mse_loss(told.float(), (shown - centre) / spread)

    steps = Steps(out / "teacher.pt", settings.teacher_steps, settings.save_every, DECAY_FROM, ema=settings.ema)
    rates = {"muon_rate": settings.rate * settings.muon_rate, "adam_rate": settings.rate * settings.adam_rate}
    taught = optimizers([pipe.transformer, head], matrices_in(pipe.transformer, "transformer_blocks"), **rates)
    with trained_attention([pipe.transformer], torch.device(device)):
        averages = steps.run("teacher", [pipe.transformer, head], taught, loss)
    pipe.transformer.load_state_dict(averages[0])
    with replacing(folder) as aside:
        write_pipeline(pipe.to("cpu"), aside, asdict(settings))
    return folder


def ends_of_parts(counts: Counts) -> NDArray[np.float64]:
    """Where in [0, 1] the part of each scene ends: a scene is drawn by the first end above an even random number."""
    each = np.zeros(len(counts))
    for count, share in DRAWN.items():
        held = counts == count
        each[held] = share / max(1, held.sum())
    ends: NDArray[np.float64] = np.cumsum(each)
    return np.asarray(ends / ends[-1])


def haunted(x0: Tensor, shown: Tensor, t: Tensor, strength: Tensor) -> Tensor:
    """`x0` with the objects of the batch's next picture over it, as ghosts of `strength` in [0, 1], shape (batch,),
    where t says that it is still being decided what there is."""
    covered = shown.roll(1, 0)[..., : len(SHAPES)].sum(-1, keepdim=True).clamp(max=1)
    seen = (strength * (t > GHOST_FROM))[:, None, None] * covered
    return torch.lerp(x0, x0.roll(1, 0), seen)


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


def _velocity_and_middle(
    pipe: FluxPipeline, text_ids: Tensor, image_ids: Tensor, x_t: Tensor, ids: Tensor, t: Tensor
) -> tuple[Tensor, Tensor]:
    """What the transformer predicts, and its image tokens half-way through, (n, 64, inner_dim)."""
    blocks = pipe.transformer.single_transformer_blocks
    kept: list[Tensor] = []
    with blocks[len(blocks) // 2 - 1].register_forward_hook(lambda block, given, result: kept.append(result[1])):
        v = pipe.transformer(
            hidden_states=x_t,
            timestep=t,
            pooled_projections=pipe.text_encoder(input_ids=ids).pooler_output,
            encoder_hidden_states=pipe.text_encoder_2(input_ids=ids)[0],
            txt_ids=text_ids,
            img_ids=image_ids,
            return_dict=False,
        )[0]
    return v, kept[0]
