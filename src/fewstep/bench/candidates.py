"""What is measured: a row's setting as a value, and the pipeline opened with it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from fewstep.accelerate import accelerate
from fewstep.bench import solvers
from fewstep.bench.quality import Array
from fewstep.bench.timing import Run, measured, peak_memory, weights_mb
from fewstep.errors import InputError
from fewstep.machine import Machine
from fewstep.models.model import Model
from fewstep.recipe import Recipe

Kind = Literal["baseline", "steps", "alone", "stack"]
WARM_STEPS = 2  # enough to load, compile and allocate everything that a long call uses
SHORT = 0.5  # seconds; a call under it is repeated
REPEATS = 3
LEARN_FROM = 2  # prompts of the call that a technique learns from
LEARNING = frozenset({"cache"})  # techniques whose first call must be a long one, for they learn from it


@dataclass(frozen=True)
class Candidate:
    """One row to measure. `recipe` holds techniques as a recipe file writes them; `call` overrides the pipeline's
    call; `grows_from` names the row that this one adds a trick to."""

    name: str
    kind: Kind
    recipe: tuple[Any, ...] = ()
    call: Mapping[str, Any] = field(default_factory=dict)
    solver: str | None = None
    grows_from: str | None = None

    @property
    def warm_up_call(self) -> dict[str, Any]:
        """What a warm-up call changes: fewer steps, unless a student brings its own."""
        if "few_step" in self._labels:
            return {}
        return {"num_inference_steps": min(WARM_STEPS, self.call.get("num_inference_steps", WARM_STEPS))}

    @property
    def learns(self) -> bool:
        """Whether a technique needs one call with all its steps before the warm-up."""
        return not self._labels.isdisjoint(LEARNING)

    @property
    def _labels(self) -> frozenset[str]:
        return frozenset(map(label, self.recipe))


def label(technique: Any) -> str:
    """The technique's name, from what a recipe file writes: a mapping of it to its fields, or the name alone."""
    return str(next(iter(technique)) if isinstance(technique, Mapping) else technique)


@dataclass(frozen=True)
class Batch:
    """Prompts and the seed of each one's noise."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]

    @property
    def small(self) -> Batch:
        """Its first prompts, as many as a technique learns from."""
        return Batch(self.prompts[:LEARN_FROM], self.seeds[:LEARN_FROM])


class Subject:
    """A candidate's pipeline, ready to be called and measured."""

    def __init__(
        self, candidate: Candidate, pipe: Any, plain: Any, engaged: Sequence[Any], setup_seconds: float
    ) -> None:
        self.candidate, self.engaged, self.setup_seconds = candidate, engaged, setup_seconds
        self._pipe, self._plain = pipe, plain

    @property
    def denoisers(self) -> list[nn.Module]:
        return list(Model(self._plain).denoisers.values())

    @property
    def weights_mb(self) -> float:
        return weights_mb(c for c in self._plain.components.values() if isinstance(c, nn.Module))

    def generate(self, batch: Batch, **call: Any) -> Array:
        """Pictures (n, height, width, 3) or frames (n, frames, height, width, 3), values in [0, 1]."""
        generators = [torch.Generator().manual_seed(seed) for seed in batch.seeds]
        output = self._pipe(
            prompt=list(batch.prompts), generator=generators, output_type="np", **{**self.candidate.call, **call}
        )
        pictures = getattr(output, "images", None)
        return np.asarray(output.frames if pictures is None else pictures, dtype=np.float32)

    def run(self, batch: Batch) -> tuple[Array, Run]:
        """The pictures and the call's time; a short call's is the median of `REPEATS`, for the first one comes
        after another row's call."""
        pictures, first = self._timed(batch)
        if first.seconds >= SHORT:
            return pictures, first
        runs = [first, *(self._timed(batch)[1] for _ in range(REPEATS - 1))]
        return pictures, sorted(runs, key=lambda run: run.seconds)[REPEATS // 2]

    def _timed(self, batch: Batch) -> tuple[Array, Run]:
        return measured(lambda: self.generate(batch), self.denoisers, len(batch.prompts))

    def warm_up(self, batch: Batch) -> tuple[float, float]:
        """Seconds of the first call (compilation is in it), then the MB that a call needs: weights and rise."""
        short = self.candidate.warm_up_call
        start = time.perf_counter()
        if self.candidate.learns:
            self.generate(batch.small)
        self.generate(batch, **short)
        seconds = time.perf_counter() - start
        with peak_memory(str(self._plain.device)) as peak:
            self.generate(batch, **short)
        return seconds, self.weights_mb + peak.rise_mb


@contextmanager
def opened(candidate: Candidate, new_pipe: Callable[[], Any], machine: Machine | None = None) -> Iterator[Subject]:
    """The candidate's own copy of the pipeline with everything on it; undone when the block ends.

    Raises:
        FewstepError: the recipe or the solver can't be used on this pipeline or machine.
    """
    start = time.perf_counter()
    plain = new_pipe()
    if hasattr(plain, "set_progress_bar_config"):
        plain.set_progress_bar_config(disable=True)
    if candidate.solver is not None:
        solvers.install(plain, candidate.solver)
    if not candidate.recipe:
        yield Subject(candidate, plain, plain, (), time.perf_counter() - start)
        return
    fast = accelerate(plain, Recipe.load(list(candidate.recipe)), machine)
    try:
        yield Subject(candidate, fast, plain, fast.engaged, time.perf_counter() - start)
    finally:
        fast.remove()


def check_prompts(prompts: Sequence[str]) -> tuple[str, ...]:
    """The prompts as a tuple.

    Raises:
        InputError: none, or one that is no text.
    """
    for prompt in prompts:
        if not isinstance(prompt, str) or not prompt.strip():
            raise InputError(f"Each prompt must be some text. Got {prompt!r}.")
    if not prompts:
        raise InputError("There must be at least one prompt to measure with.")
    return tuple(prompts)
