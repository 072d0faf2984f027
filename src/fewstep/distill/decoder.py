"""A small decoder for live video: it draws what the video VAE's own decoder draws, from this latent frame and the last.

The network is diffusers' `AutoencoderTiny`. Its decoder is given two neighbouring latent frames, the earlier one first
(zeros before the first), and gives all frames of the later one side by side in its channels; of a video's first latent
frame only the last of them counts. So a stream needs to remember one latent frame, and not the features of every layer.

    folder = distill_decoder(pipe, paths, "runs/decoder")     # paths: samples.PathSet, teacher paths or latents
    LiveModel.of(pipe, small=load_decoder(folder))
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fewstep.distill.data.samples import Index, PathBatch, PathSet
from fewstep.distill.data.store import Sizes, fill, samples_of
from fewstep.distill.engine.loop import Settings, Update, train
from fewstep.errors import InputError
from fewstep.files import read_json, replacing, write_json
from fewstep.models.fingerprint import fingerprint
from fewstep.models.load import SMALL_DECODER

if TYPE_CHECKING:
    from diffusers import AutoencoderTiny

DECODED_AT_ONCE, SHARD = 8, 256  # clips: by the VAE, and in a file


def small_decoder(pipe: Any, width: int = 48, blocks: int = 2) -> AutoencoderTiny:
    """One with random weights, for a video pipeline's latents. `width`: its channels; `blocks`: before each doubling of
    height and width."""
    from diffusers import AutoencoderTiny

    doublings = int(math.log2(pipe.vae_scale_factor_spatial))
    return AutoencoderTiny(
        out_channels=3 * pipe.vae_scale_factor_temporal,
        latent_channels=2 * pipe.vae.config["z_dim"],
        encoder_block_out_channels=(8,),  # never used: diffusers has no decoder alone
        num_encoder_blocks=(1,),
        decoder_block_out_channels=(width,) * (doublings + 1),
        num_decoder_blocks=(*(blocks,) * doublings, 1),
    )


def decode_pairs(small: AutoencoderTiny, latents: Tensor, before: Tensor | None = None) -> Tensor:
    """Latent frames (batch, channels, n, height, width) to frames (batch, n, frames a latent, 3, height, width), about
    [-1, 1]. `before`: the latent frame before the first, (batch, channels, 1, …); None where there is none."""
    before = torch.zeros_like(latents[:, :, :1]) if before is None else before
    pairs = torch.cat([torch.cat([before, latents[:, :, :-1]], 2), latents], 1)
    batch, _, n, *sides = pairs.shape
    made: Tensor = small.decoder(pairs.transpose(1, 2).reshape(batch * n, -1, *sides))
    return made.view(batch, n, -1, 3, *made.shape[-2:])


@dataclass(frozen=True, eq=False)
class DecoderDistiller:
    """L1 and L2 to the frames that the VAE decodes from the same latents, and L1 of what neighbouring pixels differ by,
    which is what outlines are (arXiv 1511.05440, section 3.2). The frames stand in the place of a batch's condition,
    (batch, 3, frames, height, width) in [-1, 1]."""

    small: AutoencoderTiny

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        return {"decoder": self.small}

    @property
    def frozen(self) -> Mapping[str, nn.Module]:
        return {}

    def updates(self, batch: PathBatch, generator: torch.Generator) -> Iterator[Update]:
        made = decode_pairs(self.small, batch.states[:, -1])
        frames = torch.cat([made[:, 0, -1:], made[:, 1:].flatten(1, 2)], 1)
        error = frames.float() - batch.cond.transpose(1, 2)
        outlines = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        yield Update("decoder", self.small, error.abs().mean() + 2 * error.square().mean() + outlines)


def decoded(pipe: Any, paths: PathSet, folder: Path, *, show: bool = True) -> PathSet:
    """The ends of these paths with what the pipeline's VAE makes of each, made once: it takes longer than a training
    step of a small decoder. A clip is stored in 6 bytes a pixel. What is there already stays.

    Raises:
        InputError: the folder holds others.
    """
    centre, spread = latent_scale(pipe.vae)

    def make(samples: range) -> Mapping[str, Tensor]:
        latents = paths.read(samples, pipe.device).states[:, -1]
        scaled = (latents * spread.to(latents) + centre.to(latents)).to(pipe.vae.dtype)
        frames = pipe.vae.decode(scaled, return_dict=False)[0]
        return samples_of({"": frames.cpu()}, latents[:, None].cpu())

    made_with = {"prompts": len(paths), "shape": list(paths.index.shape), "of": paths.fingerprint}
    index = Index("latents", paths.times[-1:], {**made_with, "vae": fingerprint(pipe.vae)})
    fill(folder, index, make, Sizes(DECODED_AT_ONCE, SHARD, "float16"), show=show)
    return PathSet(folder, torch.zeros(1))


def latent_scale(vae: Any) -> tuple[Tensor, Tensor]:
    """The mean and the deviation of a video VAE's latents, each (1, channels, 1, 1, 1)."""
    mean, std = (torch.tensor(vae.config[name]).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    return mean, std


def distill_decoder(
    pipe: Any,
    paths: PathSet,
    out: Path | str,
    *,
    width: int = 48,
    steps: int = 10_000,
    batch: int = 8,
    rate: float = 1e-3,
    seed: int = 0,
    show: bool = True,
    **training: Any,
) -> Path:
    """Train one on the ends of these paths; returns its folder, `out/decoder`. The same call goes on where it stopped.

    Raises:
        InputError: no video pipeline whose VAE tells the mean and deviation of its latents; or `out` holds another run.
        KeyboardInterrupt: Ctrl-C; all is saved.
    """
    paths.check_serves("latents", "A small decoder")
    config = getattr(getattr(pipe, "vae", None), "config", {})
    if config.get("latents_mean") is None or len(paths.index.shape) != 4:
        raise InputError(f"A small decoder is for video pipelines as Wan's are. Got {type(pipe).__name__}.")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        small = small_decoder(pipe, width).to(pipe.device)
    settings = Settings(steps=steps, seed=seed, rate=rate, **training)
    facts = {"width": width, "batch": batch, "paths": paths.fingerprint}
    clips = decoded(pipe, paths, Path(out) / "decoded", show=show).batches(batch, seed, pipe.device)
    done = train(DecoderDistiller(small), clips, Path(out), settings, facts=facts, title="small decoder", show=show)
    if not done.finished:
        raise KeyboardInterrupt
    folder = Path(out) / "decoder"
    with replacing(folder) as aside:
        trained: Any = done.averages["decoder"]
        trained.half().save_pretrained(aside)  # which diffusers loads as float32
        config = read_json(aside / "config.json")
        del config["block_out_channels"]  # diffusers writes it, and warns of it when it reads it
        write_json(aside / "config.json", config)
    return folder


def decoder_beside(pipe: Any) -> AutoencoderTiny | None:
    """The small decoder in a pipeline's own folder, which is then its `small_decoder`; None where there is none."""
    folder = Path(str(pipe.config.get("_name_or_path", ""))) / SMALL_DECODER
    return load_decoder(folder) if folder.is_dir() else None


def load_decoder(folder: Path | str) -> AutoencoderTiny:
    """What `distill_decoder` wrote.

    Raises:
        InputError: there is none.
    """
    from diffusers import AutoencoderTiny

    if not (Path(folder) / "config.json").exists():
        raise InputError(f"{folder} holds no small decoder: it has no config.json.")
    return AutoencoderTiny.from_pretrained(folder, use_safetensors=True).eval()
