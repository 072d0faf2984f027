"""Real samples of a task as data to train on, drawn when they are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fewstep.distill.data.captions import Sample
from fewstep.errors import InputError, bad_value
from fewstep.zoo.tasks import task


@dataclass(frozen=True)
class Drawn:
    """A `captions.Source` of samples drawn from a seed.

    Attributes:
        task: its name.
        frames: of a clip, which may be longer than the task's own; None: as the task has them.

    Raises:
        InputError: no such task, or frames of a task of pictures.
    """

    task: str
    samples: int
    seed: int = 0
    frames: int | None = None

    def __post_init__(self) -> None:
        if self.frames is not None and not task(self.task).parts.moves:
            owner = f"data of the task {self.task}"
            raise InputError(bad_value("frames", owner, "left out, as it has pictures", self.frames))

    @property
    def facts(self) -> Mapping[str, Any]:
        return asdict(self)

    @property
    def early(self) -> int:
        return 1

    def __len__(self) -> int:
        return self.samples

    def read(self, samples: range) -> Iterator[Sample]:
        parts = task(self.task).parts
        for i in samples:
            rng = np.random.default_rng((self.seed, i, 3))
            scene = parts.sample_scene(rng)
            drawn = parts.render(scene) if self.frames is None else parts.render(scene, self.frames)
            caption, _ = parts.describe(scene, rng)
            pixels = (drawn.clip(0, 1) * 255).round().astype(np.uint8)
            yield Sample(pixels, caption, f"Sample {i} of the task {self.task}")
