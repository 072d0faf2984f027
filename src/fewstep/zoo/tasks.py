"""What a zoo model is asked to do: prompts, real samples, and an oracle that says how good a sample is.

To add a task, write a class with the methods of `Task`, or give a `DrawnTask` its `Parts`, and list it in `TASKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray

from fewstep.errors import InputError, bad_value
from fewstep.zoo.metrics import spread
from fewstep.zoo.moving import answering as moving_answering
from fewstep.zoo.moving import features as moving_features
from fewstep.zoo.moving import oracle as moving_oracle
from fewstep.zoo.moving import render as moving_render
from fewstep.zoo.moving import scenes as moving_scenes
from fewstep.zoo.shapes import answering as shapes_answering
from fewstep.zoo.shapes import features as shapes_features
from fewstep.zoo.shapes import nearby as shapes_nearby
from fewstep.zoo.shapes import oracle as shapes_oracle
from fewstep.zoo.shapes import render as shapes_render
from fewstep.zoo.shapes import scenes as shapes_scenes

# (n, height, width, 3), or of clips (n, frames, height, width, 3); RGB in [0, 1]
Samples = NDArray[np.floating]

_REAL = 256  # real samples that `diversity` compares with when it is given none
_REAL_SEED = 9_001


class Task(Protocol):
    """Prompts, real samples and an oracle. A sample is a picture or a clip.

    An `ask` is what a prompt asks for, in the task's own terms.
    """

    name: ClassVar[str]
    parts: ClassVar[Parts]

    def prompts(self, n: int, seed: int) -> list[tuple[str, Any]]:
        """`n` prompts, each with its ask; the first ones do not depend on `n`."""

    def single(self, ask: Any) -> bool:
        """Whether it asks for one object only: the easiest prompts, scored apart."""

    def reference(self, n: int, seed: int) -> Samples:
        """`n` real samples, as the training data holds them."""

    def answering(self, ask: Any, n: int, seed: int) -> Samples:
        """`n` different real samples that all answer `ask`."""

    def correct(self, asks: Sequence[Any], samples: Samples) -> list[bool]:
        """Whether each sample shows exactly what its prompt asked for."""

    def accuracy(self, asks: Sequence[Any], samples: Samples) -> float:
        """The share of samples that show exactly what their prompts asked for, in [0, 1]."""

    def features(self, samples: Samples) -> NDArray[np.float64]:
        """Numbers for the Fréchet distance, (n, d), about unit scale."""

    def diversity(self, samples: Samples, real: Samples | None = None) -> float:
        """How far samples differ from each other, as a part of how far `real` ones do: 0 all alike, 1 as real ones.

        The mean distance of two samples' features. `real` should be drawn for the same prompts; without it, it is a
        fixed set for prompts of all kinds.
        """


@dataclass(frozen=True)
class Near:
    """Near misses: `change` gives a scene that differs from one of `sample_scene` in one thing, `shown` what a scene
    shows, as an oracle would read it, `short` whether a model reads a caption to its end."""

    sample_scene: Callable[[Generator], Any]
    change: Callable[[Any, Generator], Any]
    shown: Callable[[Any], Any]
    short: Callable[[str], bool]


@dataclass(frozen=True)
class Parts:
    """The functions that a task of scenes drawn by code is made of."""

    sample_prompt: Callable[[Generator], tuple[str, Any]]
    sample_scene: Callable[[Generator], Any]
    sample_answer: Callable[[Any, Generator], Any]
    describe: Callable[[Any, Generator], tuple[str, Any]]
    render: Callable[..., NDArray[np.floating]]  # of a scene, and of so many frames where it moves
    read: Callable[[NDArray[np.floating]], Any]
    answers: Callable[[Any, Any], bool]
    features: Callable[[Samples], NDArray[np.float64]]
    moves: bool = False
    near: Near | None = None


class DrawnTask:
    """A `Task` whose real samples are drawn by code from scenes."""

    name: ClassVar[str]
    parts: ClassVar[Parts]

    def prompts(self, n: int, seed: int) -> list[tuple[str, Any]]:
        return [self.parts.sample_prompt(default_rng((seed, i))) for i in range(n)]

    def single(self, ask: Any) -> bool:
        return len(ask.things) == 1

    def reference(self, n: int, seed: int) -> Samples:
        return np.stack([self.parts.render(self.parts.sample_scene(default_rng((seed, i, 1)))) for i in range(n)])

    def answering(self, ask: Any, n: int, seed: int) -> Samples:
        scenes = (self.parts.sample_answer(ask, default_rng((seed, i, 2))) for i in range(n))
        return np.stack([self.parts.render(scene) for scene in scenes])

    def correct(self, asks: Sequence[Any], samples: Samples) -> list[bool]:
        if len(asks) != len(samples):
            right = f"one for each of {len(asks)} asks"
            raise InputError(bad_value("samples", f"the {self.name} task", right, len(samples)))
        return [self.parts.answers(ask, self.parts.read(one)) for ask, one in zip(asks, samples, strict=True)]

    def accuracy(self, asks: Sequence[Any], samples: Samples) -> float:
        return float(np.mean(self.correct(asks, samples)))

    def features(self, samples: Samples) -> NDArray[np.float64]:
        return self.parts.features(samples)

    def diversity(self, samples: Samples, real: Samples | None = None) -> float:
        real = self.reference(_REAL, _REAL_SEED) if real is None else real
        return spread(self.features(samples)) / spread(self.features(real))


class ShapesTask(DrawnTask):
    """Text to image: objects with shape, colour, size, fill and relation on a textured background, 64×64 pixels."""

    name: ClassVar[str] = "shapes"
    parts: ClassVar[Parts] = Parts(
        shapes_scenes.sample_prompt,
        shapes_scenes.sample_scene,
        shapes_answering.sample_answer,
        shapes_scenes.describe,
        shapes_render.render,
        shapes_oracle.read,
        shapes_oracle.answers,
        shapes_features.features,
        near=Near(shapes_nearby.sample_even, shapes_nearby.nearby, shapes_oracle.shown, shapes_nearby.short),
    )


class MovingShapesTask(DrawnTask):
    """Text to video: one or two objects with shape, colour, direction and speed, 17 frames of 64×64 pixels."""

    name: ClassVar[str] = "moving-shapes"
    parts: ClassVar[Parts] = Parts(
        moving_scenes.sample_prompt,
        moving_scenes.sample_scene,
        moving_answering.sample_answer,
        moving_scenes.describe,
        moving_render.render,
        moving_oracle.read,
        moving_oracle.answers,
        moving_features.features,
        moves=True,
    )


TASKS: dict[str, Task] = {task.name: task for task in (ShapesTask(), MovingShapesTask())}


def task(name: str) -> Task:
    """The task of this name.

    Raises:
        InputError: there is none.
    """
    if name not in TASKS:
        raise InputError(bad_value("task", "the zoo", f"one of {', '.join(TASKS)}", name))
    return TASKS[name]


def task_of(model: str) -> Task:
    """The task of a zoo model, whose name is the task's, or begins with it and a dash.

    Raises:
        InputError: it is of none.
    """
    names = [name for name in TASKS if f"{model}-".startswith(f"{name}-")]
    return task(names[0] if names else model)
