"""What a zoo model is asked to do: prompts, real samples, and an oracle that says how good a sample is.

To add a task, write a class with the methods of `Task` and list it in `TASKS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from fewstep.errors import InputError, bad_value
from fewstep.zoo.metrics import spread
from fewstep.zoo.shapes.answering import sample_answer
from fewstep.zoo.shapes.features import features
from fewstep.zoo.shapes.oracle import answers, read
from fewstep.zoo.shapes.render import render
from fewstep.zoo.shapes.scenes import Ask, sample_prompt, sample_scene

Images = NDArray[np.floating]  # (n, height, width, 3), RGB in [0, 1]

_REAL = 256  # real samples that `diversity` compares with when it is given none
_REAL_SEED = 9_001


class Task(Protocol):
    """Prompts, real samples and an oracle. An `ask` is what a prompt asks for, in the task's own terms."""

    name: ClassVar[str]

    def prompts(self, n: int, seed: int) -> list[tuple[str, Any]]:
        """`n` prompts, each with its ask; the first ones do not depend on `n`."""

    def single(self, ask: Any) -> bool:
        """Whether it asks for one object only: the easiest prompts, scored apart."""

    def reference(self, n: int, seed: int) -> Images:
        """`n` real samples, as the training data holds them."""

    def answering(self, ask: Any, n: int, seed: int) -> Images:
        """`n` different real samples that all answer `ask`."""

    def correct(self, asks: Sequence[Any], images: Images) -> list[bool]:
        """Whether each image shows exactly what its prompt asked for."""

    def accuracy(self, asks: Sequence[Any], images: Images) -> float:
        """The share of images that show exactly what their prompts asked for, in [0, 1]."""

    def features(self, images: Images) -> NDArray[np.float64]:
        """Numbers for the Fréchet distance, (n, d), about unit scale."""

    def diversity(self, images: Images, real: Images | None = None) -> float:
        """How far `images` differ from each other, as a part of how far `real` ones do: 0 all alike, 1 as real ones.

        The mean distance of two images' features. `real` should be drawn for the same prompts; without it, it is a
        fixed set for prompts of all kinds.
        """


class ShapesTask:
    """Text to image: objects with shape, colour, size, fill and relation on a textured background, 64×64 pixels."""

    name: ClassVar[str] = "shapes"

    def prompts(self, n: int, seed: int) -> list[tuple[str, Ask]]:
        return [sample_prompt(np.random.default_rng((seed, i))) for i in range(n)]

    def single(self, ask: Ask) -> bool:
        return len(ask.things) == 1

    def reference(self, n: int, seed: int) -> Images:
        return np.stack([render(sample_scene(np.random.default_rng((seed, i, 1)))) for i in range(n)])

    def answering(self, ask: Ask, n: int, seed: int) -> Images:
        return np.stack([render(sample_answer(ask, np.random.default_rng((seed, i, 2)))) for i in range(n)])

    def correct(self, asks: Sequence[Ask], images: Images) -> list[bool]:
        if len(asks) != len(images):
            raise InputError(bad_value("images", "the shapes task", f"one for each of {len(asks)} asks", len(images)))
        return [answers(ask, read(image)) for ask, image in zip(asks, images, strict=True)]

    def accuracy(self, asks: Sequence[Ask], images: Images) -> float:
        return float(np.mean(self.correct(asks, images)))

    def features(self, images: Images) -> NDArray[np.float64]:
        return features(images)

    def diversity(self, images: Images, real: Images | None = None) -> float:
        real = self.reference(_REAL, _REAL_SEED) if real is None else real
        return spread(self.features(images)) / spread(self.features(real))


TASKS: dict[str, Task] = {task.name: task for task in (ShapesTask(),)}


def task(name: str) -> Task:
    """The task of this name.

    Raises:
        InputError: there is none.
    """
    if name not in TASKS:
        raise InputError(bad_value("task", "the zoo", f"one of {', '.join(TASKS)}", name))
    return TASKS[name]
