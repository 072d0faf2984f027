"""How good a pipeline is at a zoo task: it makes samples for random prompts and the task's oracle judges them.

A sample is a picture or a clip, whichever the pipeline gives.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fewstep.errors import InputError, bad_value
from fewstep.models.load import for_each
from fewstep.zoo.metrics import frechet
from fewstep.zoo.tasks import Task

REAL = 1024  # real samples that the generated ones are compared with
REAL_SEED = 7_001  # drawn apart from every prompt's seed
DIVERSE_PROMPTS, DIVERSE_SEEDS = 8, 6  # samples made for diversity: so many prompts, so many of each


@dataclass(frozen=True)
class Quality:
    """What the oracle says of `n` samples.

    Attributes:
        prompt_accuracy: share of the samples that show exactly what was asked, in [0, 1].
        one_object_accuracy: the same over the prompts for one object; NaN where there were none.
        frechet: Fréchet distance of the task's features to those of `REAL` real samples; 0 is best, it depends on `n`.
        diversity: how far samples of one prompt differ, as a part of how far real samples that answer it do, the mean
            over a few prompts: 0 all alike, 1 as varied as real ones.
        n: samples judged for the first three.
        seconds: wall time of all that.
    """

    prompt_accuracy: float
    one_object_accuracy: float
    frechet: float
    diversity: float
    n: int
    seconds: float


def evaluate(
    pipe: Any, task: Task, prompts: int = 256, seed: int = 0, batch: int = 32, show: bool = True, **call: Any
) -> Quality:
    """Make a sample for each of `prompts` random prompts, and judge them. Results do not depend on `batch`.

    Args:
        pipe: a pipeline or what `accelerate` made of it.
        show: a progress bar on the terminal.
        call: passed to the pipeline (num_inference_steps, …).

    Raises:
        InputError: fewer than two prompts, a batch below one, or samples that the task can't read.
    """
    if prompts < 2:
        raise InputError(bad_value("prompts", "evaluate", "at least 2", prompts))
    start = time.perf_counter()
    asked = task.prompts(prompts, seed)
    texts, asks = [text for text, _ in asked], [ask for _, ask in asked]
    few = asked[:DIVERSE_PROMPTS]
    again = [text for text, _ in few for _ in range(DIVERSE_SEEDS)]

    made = generate(pipe, texts + again, range(len(texts) + len(again)), seed=seed, batch=batch, show=show, **call)
    samples, repeated = made[:prompts], np.split(made[prompts:], len(few))
    correct = np.array(task.correct(asks, samples))
    single = np.array([task.single(ask) for ask in asks])
    varied = [
        task.diversity(drawn, task.answering(ask, 4 * DIVERSE_SEEDS, seed))
        for drawn, (_, ask) in zip(repeated, few, strict=True)
    ]
    return Quality(
        prompt_accuracy=float(correct.mean()),
        one_object_accuracy=float(correct[single].mean()) if single.any() else float("nan"),
        frechet=frechet(task.features(samples), task.features(task.reference(REAL, REAL_SEED))),
        diversity=float(np.mean(varied)),
        n=prompts,
        seconds=time.perf_counter() - start,
    )


def generate(
    pipe: Any,
    texts: Sequence[str],
    samples: Sequence[int],
    *,
    seed: int = 0,
    batch: int = 32,
    show: bool = True,
    **call: Any,
) -> NDArray[np.float32]:
    """A sample for each text, RGB in [0, 1]: shape (n, height, width, 3), of clips (n, frames, height, width, 3).

    Every sample has a generator of its own, seeded from `seed` and its number in `samples`, so it does not depend on
    which others it was drawn with.

    Raises:
        InputError: a batch below one, or not as many samples as texts.
    """
    if batch < 1:
        raise InputError(bad_value("batch", "generate", "at least 1", batch))
    if len(samples) != len(texts):
        raise InputError(bad_value("samples", "generate", f"one for each of {len(texts)} texts", len(samples)))
    drawn = []
    with Progress(*_COLUMNS, disable=not show, transient=True) as bar:
        work = bar.add_task("samples", total=len(texts))
        for start in range(0, len(texts), batch):
            some = list(texts[start : start + batch])
            generators = [_generator(seed, i) for i in samples[start : start + batch]]
            own = {name: for_each(value, some) if name == "negative_prompt" else value for name, value in call.items()}
            drawn.append(_samples(pipe(prompt=some, generator=generators, output_type="np", **own)))
            bar.advance(work, len(some))
    return np.concatenate(drawn)


def _samples(output: Any) -> NDArray[np.float32]:
    """What a pipeline gives: pictures as `images`, clips as `frames`."""
    made = next(value for name in _FIELDS if (value := getattr(output, name, None)) is not None)
    return np.asarray(made, dtype=np.float32)


_FIELDS = ("images", "frames")
_COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


def _generator(seed: int, sample: int) -> torch.Generator:
    """On the CPU whatever the device: the noise is the same everywhere."""
    mixed = np.random.SeedSequence((seed, sample)).generate_state(1, np.uint64)[0]
    return torch.Generator("cpu").manual_seed(int(mixed >> np.uint64(1)))
