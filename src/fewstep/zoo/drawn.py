"""Real samples of a task as data to train on, drawn when they are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fewstep.distill.data.captions import Sample
from fewstep.errors import InputError, bad_value
from fewstep.zoo.tasks import Parts, task

WORDINGS = 8  # captions that are tried for one that tells two scenes apart


@dataclass(frozen=True)
class Drawn:
    """A `captions.Source` of samples drawn from a seed.

    Attributes:
        task: its name.
        frames: of a clip, which may be longer than the task's own; None: as the task has them.
        near: samples come in twos, 2i and 2i + 1, which differ in one thing: the caption of each is wrong for the
            other.

    Raises:
        InputError: no such task, frames of a task of pictures, or one that knows no near misses.
    """

    task: str
    samples: int
    seed: int = 0
    frames: int | None = None
    near: bool = False

    def __post_init__(self) -> None:
        parts = task(self.task).parts
        if self.frames is not None and not parts.moves:
            owner = f"data of the task {self.task}"
            raise InputError(bad_value("frames", owner, "left out, as it has pictures", self.frames))
        if self.near and parts.near is None:
            raise InputError(f"The task {self.task} knows no near misses.")

    @property
    def facts(self) -> Mapping[str, Any]:
        named = asdict(self)
        return {**named, "pairs": True} if named.pop("near") else named

    @property
    def early(self) -> int:
        return 1

    def __len__(self) -> int:
        return self.samples

    def read(self, samples: range) -> Iterator[Sample]:
        render = task(self.task).parts.render
        for i in samples:
            one = self.pair(i // 2)[i % 2] if self.near else self._one(i)
            drawn = render(one.scene) if self.frames is None else render(one.scene, self.frames)
            pixels = (drawn.clip(0, 1) * 255).round().astype(np.uint8)
            yield Sample(pixels, one.caption, f"Sample {i} of the task {self.task}")

    def _one(self, number: int) -> Captioned:
        parts, rng = task(self.task).parts, np.random.default_rng((self.seed, number, 3))
        scene = parts.sample_scene(rng)
        return Captioned(scene, *parts.describe(scene, rng))

    def pair(self, number: int) -> tuple[Captioned, Captioned]:
        """The near misses 2·number and 2·number + 1 before they are drawn."""
        parts, rng = task(self.task).parts, np.random.default_rng((self.seed, number, 4))
        assert parts.near is not None
        while True:
            scene = parts.near.sample_scene(rng)
            other = parts.near.change(scene, rng)
            first, second = _telling(parts, scene, other, rng), _telling(parts, other, scene, rng)
            if first is not None and second is not None:
                return first, second


@dataclass(frozen=True)
class Captioned:
    """A scene, a caption for it and what that asks for."""

    scene: Any
    caption: str
    ask: Any


def _telling(parts: Parts, scene: Any, other: Any, rng: np.random.Generator) -> Captioned | None:
    """The scene with a caption that the other does not answer; None where chance found none."""
    assert parts.near is not None
    for _ in range(WORDINGS):
        caption, ask = parts.describe(scene, rng)
        if parts.near.short(caption) and not parts.answers(ask, parts.near.shown(other)):
            return Captioned(scene, caption, ask)
    return None
