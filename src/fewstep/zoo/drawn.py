"""Real samples of a task as data to train on, drawn when they are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

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

    Raises:
        InputError: no such task, or frames of a task of pictures.
    """

    task: str
    samples: int
    seed: int = 0
    frames: int | None = None

    def __post_init__(self) -> None:
        _check_frames(self.task, self.frames)

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
            pixels = _render(parts, scene, self.frames)
            caption, _ = parts.describe(scene, rng)
            yield Sample(pixels, caption, f"Sample {i} of the task {self.task}")


@dataclass(frozen=True)
class NearMisses:
    """A `captions.Source` of samples in twos, 2i and 2i + 1, which differ in one thing: the caption of each is wrong
    for the other.

    Raises:
        InputError: no such task, or one that knows no near misses.
    """

    task: str
    samples: int
    seed: int = 0
    frames: int | None = None

    def __post_init__(self) -> None:
        _check_frames(self.task, self.frames)
        if task(self.task).parts.near is None:
            raise InputError(f"The task {self.task} knows no near misses.")

    @property
    def facts(self) -> Mapping[str, Any]:
        return {"pairs": True, **asdict(self)}

    @property
    def early(self) -> int:
        return 1

    def __len__(self) -> int:
        return self.samples

    def read(self, samples: range) -> Iterator[Sample]:
        for i in samples:
            one = self.pair(i // 2)[i % 2]
            pixels = _render(task(self.task).parts, one.scene, self.frames)
            yield Sample(pixels, one.caption, f"Near miss {i} of the task {self.task}")

    def pair(self, number: int) -> tuple[Captioned, Captioned]:
        """The samples 2·number and 2·number + 1 before they are drawn."""
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


def _check_frames(name: str, frames: int | None) -> None:
    if frames is not None and not task(name).parts.moves:
        raise InputError(bad_value("frames", f"data of the task {name}", "left out, as it has pictures", frames))


def _render(parts: Parts, scene: Any, frames: int | None) -> NDArray[np.uint8]:
    drawn = parts.render(scene) if frames is None else parts.render(scene, frames)
    return (drawn.clip(0, 1) * 255).round().astype(np.uint8)
