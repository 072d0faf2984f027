"""The recipe that makes `zoo:shapes` from nothing: pictures → VAE → latents → text encoders and transformer → folder.

Every stage leaves its result in the run's folder and is skipped when it is already there; the two trainings save a
checkpoint at intervals and go on from it, so a run that is killed is started again with the same command. All data is
drawn from seeds: scene `i` is `sample_scene(default_rng(i))`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FluxPipeline
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from fewstep.errors import InputError
from fewstep.files import read_json, replacing, write_json
from fewstep.zoo.shapes.pipeline import PROMPT_TOKENS, build_pipeline, build_tokenizer, build_vae
from fewstep.zoo.shapes.render import render
from fewstep.zoo.shapes.scenes import IMAGE_SIZE, describe, sample_scene

WORDINGS = 4  # prompts kept for every scene
CHUNK = 1000  # scenes that one process draws at a time


@dataclass(frozen=True)
class Settings:
    """One run. The defaults made the shipped weights."""

    scenes: int = 120_000
    vae_steps: int = 1500
    vae_batch: int = 32
    vae_rate: float = 1e-3
    vae_kl: float = 1e-4
    teacher_steps: int = 3000
    teacher_batch: int = 128
    muon_rate: float = 5e-3  # the matrices of the transformer's blocks
    adam_rate: float = 1e-3  # everything else
    prompt_dropout: float = 0.1  # how often a prompt is left out, which is what guidance needs
    ema: float = 0.998
    save_every: int = 100
    seed: int = 0


def train(out: Path, settings: Settings = Settings(), device: str = "cpu") -> Path:
    """Makes the pipeline and returns its folder, `out/pipeline`.

    Raises:
        InputError: `out` holds a run with other settings.
    """
    _same_run(out, settings)
    pictures = _pictures(out, settings)
    vae = _trained_vae(out, settings, pictures, device)
    latents, tokens = _encoded(out, settings, pictures, vae, device)
    return _trained_pipeline(out, settings, vae, latents, tokens, device)


def _same_run(out: Path, settings: Settings) -> None:
    kept, now = out / "settings.json", asdict(settings)
    if kept.exists() and read_json(kept) != now:
        raise InputError(f"{kept} is of a run with other settings: take another folder, or delete it to start anew.")
    write_json(kept, now)


# ---------------------------------------------------------------------------------------------------------------------
# Data


def _pictures(out: Path, settings: Settings) -> np.ndarray:
    """uint8 RGB, shape (scenes, 64, 64, 3), mapped from disk."""
    path = out / "pictures.npy"
    if not path.exists():
        shape = (settings.scenes, IMAGE_SIZE, IMAGE_SIZE, 3)
        with _bar() as bar, ProcessPoolExecutor() as pool, replacing(path) as aside:
            kept = np.lib.format.open_memmap(aside, mode="w+", dtype=np.uint8, shape=shape)
            starts = range(0, settings.scenes, CHUNK)
            drawn = pool.map(partial(_draw, scenes=settings.scenes), starts)
            for start, block in bar.track(zip(starts, drawn, strict=True), len(starts), description="pictures"):
                kept[start : start + len(block)] = block
            kept.flush()
    return np.load(path, mmap_mode="r")


def _draw(start: int, scenes: int) -> np.ndarray:
    seeds = range(start, min(start + CHUNK, scenes))
    pictures = [render(sample_scene(np.random.default_rng(seed))) for seed in seeds]
    return np.round(np.clip(pictures, 0, 1) * 255).astype(np.uint8)


def _word(start: int, scenes: int) -> np.ndarray:
    """Token ids of `WORDINGS` prompts for every scene of a chunk, shape (chunk, WORDINGS, PROMPT_TOKENS)."""
    tokenizer = build_tokenizer()
    seeds = range(start, min(start + CHUNK, scenes))
    prompts = [
        describe(sample_scene(np.random.default_rng(seed)), np.random.default_rng((seed, wording)))[0]
        for seed in seeds
        for wording in range(WORDINGS)
    ]
    return _tokens(tokenizer, prompts).reshape(len(seeds), WORDINGS, PROMPT_TOKENS)


def _tokens(tokenizer: Any, prompts: list[str]) -> np.ndarray:
    ids = tokenizer(prompts, padding="max_length", max_length=PROMPT_TOKENS, truncation=True, return_tensors="np")
    return np.asarray(ids.input_ids, dtype=np.int16)


def _as_tensor(pictures: np.ndarray, device: str) -> Tensor:
    """uint8 (n, 64, 64, 3) → float (n, 3, 64, 64) in [-1, 1]."""
    images = torch.from_numpy(np.ascontiguousarray(pictures)).to(device).permute(0, 3, 1, 2)
    return images.float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def _encoded(
    out: Path, settings: Settings, pictures: np.ndarray, vae: AutoencoderKL, device: str
) -> tuple[np.ndarray, np.ndarray]:
    """Packed latents, float16 of shape (scenes, 64, 32), scaled as the pipeline scales them; and prompt tokens."""
    path, tokens_path = out / "latents.npy", out / "tokens.npy"
    starts = range(0, settings.scenes, CHUNK)
    if not path.exists():
        with _bar() as bar, replacing(path) as aside:
            kept = np.lib.format.open_memmap(aside, mode="w+", dtype=np.float16, shape=(settings.scenes, 64, 32))
            for start in bar.track(starts, description="latents"):
                for low in range(start, min(start + CHUNK, settings.scenes), 100):
                    images = _as_tensor(pictures[low : min(low + 100, settings.scenes)], device)
                    packed = _pack((vae.encode(images).latent_dist.mean - _shift(vae)) * _scale(vae))
                    kept[low : low + len(packed)] = packed.cpu().numpy().astype(np.float16)
            kept.flush()
    if not tokens_path.exists():
        with _bar() as bar, ProcessPoolExecutor() as pool, replacing(tokens_path) as aside:
            worded = pool.map(partial(_word, scenes=settings.scenes), starts)
            blocks = list(bar.track(worded, len(starts), description="prompts"))
            with aside.open("wb") as file:
                np.save(file, np.concatenate(blocks))
    return np.load(path, mmap_mode="r"), np.load(tokens_path)


def _shift(vae: AutoencoderKL) -> float:
    return float(vae.config["shift_factor"])


def _scale(vae: AutoencoderKL) -> float:
    return float(vae.config["scaling_factor"])


def _pack(latents: Tensor) -> Tensor:
    """(n, 8, 16, 16) → (n, 64, 32): each token holds a 2×2 patch, as `FluxPipeline` packs it."""
    n, channels, height, width = latents.shape
    return FluxPipeline._pack_latents(latents, n, channels, height, width)


# ---------------------------------------------------------------------------------------------------------------------
# Training


def _trained_vae(out: Path, settings: Settings, pictures: np.ndarray, device: str) -> AutoencoderKL:
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
        images = _as_tensor(pictures[np.sort(rng.integers(0, len(pictures), settings.vae_batch))], device)
        with torch.autocast(device, torch.bfloat16):
            posterior = vae.encode(images).latent_dist
            drawn = vae.decode(posterior.sample()).sample
        error, mean, log_var = drawn.float() - images, posterior.mean.float(), posterior.logvar.float()
        kl = 0.5 * (mean**2 + log_var.exp() - 1 - log_var).mean()
        return error.abs().mean() + 2 * (error**2).mean() + settings.vae_kl * kl

    steps = _Steps(out / "vae.pt", settings.vae_steps, settings.save_every, decay_from=0.4)
    steps.run("VAE", [vae], [optimizer], loss)
    with torch.no_grad():
        means = vae.encode(_as_tensor(pictures[:2000:4], device)).latent_dist.mean
    vae.register_to_config(shift_factor=float(means.mean()), scaling_factor=float(1 / means.std()))
    with replacing(folder) as aside:
        vae.save_pretrained(aside)
    return vae


def _trained_pipeline(
    out: Path, settings: Settings, vae: AutoencoderKL, latents: np.ndarray, tokens: np.ndarray, device: str
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
    predict = torch.compile(partial(_velocity, pipe, *_positions(device)))
    empty = torch.from_numpy(_tokens(pipe.tokenizer, [""])).to(device)

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

    steps = _Steps(out / "teacher.pt", settings.teacher_steps, settings.save_every, decay_from=0.5, ema=settings.ema)
    averages = steps.run("teacher", list(parts), _optimizers(parts, settings), loss)
    for part, average in zip(parts, averages, strict=True):
        part.load_state_dict(average)
    with replacing(folder) as aside:
        pipe.to("cpu").save_pretrained(aside)
    return folder


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


@dataclass(frozen=True)
class _Steps:
    """A training of `total` steps that saves itself to `path` and goes on from there.

    The rate is constant up to `decay_from` (a part of the run) and falls linearly to 0 after it.
    """

    path: Path
    total: int
    save_every: int
    decay_from: float
    ema: float = 0.0
    warmup: int = 50

    def run(
        self,
        name: str,
        modules: list[nn.Module],
        optimizers: list[torch.optim.Optimizer],
        loss: Callable[[int], Tensor],
    ) -> list[dict[str, Tensor]]:
        """Trains `modules` and returns their averaged weights, one state dict each."""
        rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
        averages = [{k: v.clone() for k, v in module.state_dict().items()} for module in modules]
        done = self._resume(modules, optimizers, averages)
        parameters = [p for module in modules for p in module.parameters()]
        for step in self._progress(name, done):
            for optimizer, base in zip(optimizers, rates, strict=True):
                for group, rate in zip(optimizer.param_groups, base, strict=True):
                    group["lr"] = rate * self._rate(step)
                optimizer.zero_grad()
            value = loss(step)
            value.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            for optimizer in optimizers:
                optimizer.step()
            self._average(modules, averages, step)
            if (step + 1) % 10 == 0:
                self._log(step + 1, float(value.detach()))
            if (step + 1) % self.save_every == 0 or step + 1 == self.total:
                self._save(step + 1, modules, optimizers, averages)
        return averages

    def _rate(self, step: int) -> float:
        decay = (1 - step / self.total) / (1 - self.decay_from)
        return min(1.0, (step + 1) / self.warmup, decay)

    def _average(self, modules: list[nn.Module], averages: list[dict[str, Tensor]], step: int) -> None:
        keep = min(self.ema, (1 + step) / (10 + step))
        for module, average in zip(modules, averages, strict=True):
            for key, value in module.state_dict().items():
                if value.is_floating_point():
                    average[key].lerp_(value.detach(), 1 - keep)

    def _progress(self, name: str, done: int) -> Iterator[int]:
        with _bar() as bar:
            task = bar.add_task(name, total=self.total, completed=done)
            for step in range(done, self.total):
                yield step
                bar.advance(task)

    def _log(self, step: int, value: float) -> None:
        with self.path.with_suffix(".jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "loss": round(value, 5)}) + "\n")

    def _save(
        self,
        step: int,
        modules: list[nn.Module],
        optimizers: list[torch.optim.Optimizer],
        averages: list[dict[str, Tensor]],
    ) -> None:
        state = {
            "step": step,
            "modules": [m.state_dict() for m in modules],
            "optimizers": [o.state_dict() for o in optimizers],
            "averages": averages,
        }
        with replacing(self.path) as aside:
            torch.save(state, aside)

    def _resume(
        self,
        modules: list[nn.Module],
        optimizers: list[torch.optim.Optimizer],
        averages: list[dict[str, Tensor]],
    ) -> int:
        if not self.path.exists():
            return 0
        state = torch.load(self.path, weights_only=True)
        for module, weights in zip(modules, state["modules"], strict=True):
            module.load_state_dict(weights)
        for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        for average, kept in zip(averages, state["averages"], strict=True):
            average.update(kept)
        return int(state["step"])


def _bar() -> Progress:
    return Progress(*Progress.get_default_columns()[:3], MofNCompleteColumn(), TimeRemainingColumn(), TextColumn(""))
