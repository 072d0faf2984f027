"""Real data to train from: pictures or videos with captions, encoded once into the states of a pipeline's denoiser.

    pipe = fewstep.load("zoo:shapes")
    latents = encode(pipe, trace(pipe, prompt="a red ring"), "pictures", "out/latents")

What is stored is x0 under its condition, in the form of teacher paths (`data`).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from fewstep.distill.data import conditions
from fewstep.distill.data.captions import Sample, Source, source_of
from fewstep.distill.data.conditions import Condition, prompted
from fewstep.distill.data.latents import LatentSpace, Posterior, find_space
from fewstep.distill.data.pictures import check, load
from fewstep.distill.data.samples import INDEX, Index, PathSet
from fewstep.distill.data.seeds import generator
from fewstep.distill.data.store import Sizes, Stored, fill, samples_of
from fewstep.errors import InputError, bad_value
from fewstep.models.fingerprint import fingerprint
from fewstep.models.model import Model
from fewstep.models.trace import TracedDenoiser
from fewstep.progress import bar


@dataclass(frozen=True)
class EncodeSettings:
    """How to encode data.

    Attributes:
        posterior: what is taken of what the VAE tells of a picture, its "mean" or a "sample".
        height, width: to which pictures are resized and cropped; None: those of the traced call.
        frames: of a video; None: those of the traced call.
        stride: every stride-th frame of a video is taken, from its start.
        batch: samples encoded together.
        shard: samples a file; a stopped run goes on from the last whole one.
        seed: of samples of the posterior.
        stored: dtype of states and conditions on disk.

    Raises:
        InputError: a value out of its range.
    """

    posterior: Posterior = "mean"
    height: int | None = None
    width: int | None = None
    frames: int | None = None
    stride: int = 1
    batch: int = 16
    shard: int = 512
    seed: int = 0
    stored: Stored = "float32"

    def __post_init__(self) -> None:
        if self.posterior not in get_args(Posterior):
            raise InputError(bad_value("posterior", "encoding", f"one of {get_args(Posterior)}", self.posterior))
        for name in ("height", "width", "frames", "stride"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(bad_value(name, "encoding", "at least 1", value))
        _ = self.sizes  # checks its own values

    @property
    def sizes(self) -> Sizes:
        return Sizes(self.batch, self.shard, self.stored)

    def call(self, pipe: Any) -> dict[str, int]:
        """What of the pipeline's call these settings set.

        Raises:
            InputError: its call does not take it.
        """
        takes = inspect.signature(type(pipe).__call__).parameters
        values = {"height": self.height, "width": self.width, "num_frames": self.frames}
        given = {name: value for name, value in values.items() if value is not None}
        for name in given:
            if name not in takes:
                raise InputError(
                    f"The call of {type(pipe).__name__} takes no {name!r}, so data can't be encoded with one."
                )
        return given


def encode(
    pipe: Any,
    traced: TracedDenoiser,
    source: Source | Path | str,
    folder: Path | str,
    settings: EncodeSettings | None = None,
    *,
    condition: Condition | None = None,
    facts: Mapping[str, Any] | None = None,
    show: bool = True,
) -> PathSet:
    """Store the data of `source` as latents in `folder`, going on after the shards that are there.

    Args:
        pipe, traced: a pipeline and its denoiser; data becomes what that sees.
        source: a folder or data set as `captions.source_of` takes it, or what it gives.
        condition: captions -> the denoiser's condition; None: the pipeline's own, with captions as prompts.
        facts: what else must be equal to go on, as JSON: how the denoiser is guided, for one.

    Raises:
        InputError: data that is damaged or has no caption (the message names it; of a folder, before any work), a
            pipeline whose latents are not understood, or a folder that holds other samples.
        MachineError: the disk is full, or an extra package is needed.
    """
    settings, folder = settings or EncodeSettings(), Path(folder)
    data = source_of(source) if isinstance(source, str | Path) else source
    call = settings.call(pipe)
    space, condition = find_space(pipe, traced, **call), condition or prompted(traced, **call)
    if not (folder / INDEX).exists():  # what is gone on with was looked at
        _look(data, space, settings, show)
    used = {name: getattr(settings, name) for name in ("posterior", "stride", "seed", "stored")}
    made_with = {
        **{"encoders": _encoders(pipe), "prompts": len(data), "shape": list(space.shape)},
        **{**data.facts, **used, "pixels": list(space.pixels), **(facts or {})},
    }

    def make(samples: range) -> dict[str, Tensor]:
        some = list(data.read(samples))
        states = _states(space, some, settings, samples)
        return samples_of(conditions.of(condition, [one.caption for one in some])[1], states[:, None])

    fill(folder, Index("latents", (traced.schedule.end,), made_with), make, settings.sizes, show=show)
    return PathSet(folder, conditions.template_of(condition, [""]))  # any caption: what differs is stored


def _states(space: LatentSpace, some: Sequence[Sample], settings: EncodeSettings, samples: range) -> Tensor:
    pixels = torch.stack([load(one.media, one.name, space.pixels, settings.stride) for one in some])
    states = space.encode(pixels, settings.posterior, [generator(settings.seed, "posterior", i) for i in samples])
    for one, state in zip(some, states, strict=True):
        if not bool(state.isfinite().all()):
            raise InputError(f"The VAE makes numbers of {one.name} that are not finite: load it in float32.")
    return states


def _look(data: Source, space: LatentSpace, settings: EncodeSettings, show: bool) -> None:
    with bar("looking at the data", data.early, show=show) as progress:
        for number, one in enumerate(data.read(range(data.early)), 1):
            check(one.media, one.name, space.pixels, settings.stride)
            progress(number, "")


def _encoders(pipe: Any) -> dict[str, str]:
    """The weights that latents and conditions depend on."""
    model = Model(pipe)
    parts = {"vae": model.vae, **model.text_encoders}
    return {name: fingerprint(part) for name, part in parts.items() if part is not None}
