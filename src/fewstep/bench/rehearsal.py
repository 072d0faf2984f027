"""A distillation tried on a batch: what it will need of memory, time and disk, before it starts.

Everything of the job is done once in a folder that is thrown away: the trace, one batch of teacher paths or of data,
two steps of each rung (the first warms up, the second is timed), the student written and run in its steps.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from fewstep.bench.timing import MB, peak_memory, weights_mb
from fewstep.distill.data.captions import First, Source
from fewstep.distill.engine.loop import Settings
from fewstep.distill.engine.roles import device_of
from fewstep.distill.job import Job, Rung
from fewstep.distill.ladder import Lesson
from fewstep.distill.pipelines import PipelineJob

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

HOUR = 3600.0
STATES = {"adamw": 2, "muon": 2}  # tensors of an optimizer for each weight, about


@dataclass(frozen=True)
class Role:
    """A network of a rung: millions of parameters, and MB of its weights, its average and its optimizer's states."""

    name: str
    parameters: float
    trained: float
    weights_mb: float
    training_mb: float


@dataclass(frozen=True)
class Measured:
    """A rung: `peak_mb` is above what the pipeline takes by itself; `hours` are those of all its steps."""

    rung: str
    steps: int
    roles: tuple[Role, ...]
    peak_mb: float
    batch: int
    seconds_a_step: float
    hours: float
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rehearsal:
    """The teacher's paths and then each rung."""

    paths: int
    paths_hours: float
    paths_mb: float
    rungs: tuple[Measured, ...]

    @property
    def hours(self) -> float:
        return self.paths_hours + sum(one.hours for one in self.rungs)

    def role_rows(self) -> list[dict[str, Any]]:
        """A row for each network of each rung."""
        return [
            {
                "rung": one.rung,
                "network": role.name,
                "parameters": role.parameters,
                "trained": role.trained,
                "weights": role.weights_mb,
                "gradient, average, optimizer": role.training_mb,
            }
            for one in self.rungs
            for role in one.roles
        ]

    def time_rows(self) -> list[dict[str, Any]]:
        """A row for the paths, for each rung, and for all."""
        keys = ("part", "count", "batch", "seconds each", "hours", "peak MB", "disk MB")
        each = HOUR * self.paths_hours / self.paths
        rows = [
            ("samples to train on", self.paths, None, each, self.paths_hours, None, self.paths_mb),
            *((one.rung, one.steps, one.batch, one.seconds_a_step, one.hours, one.peak_mb, None) for one in self.rungs),
            ("all", None, None, None, self.hours, max(one.peak_mb for one in self.rungs), self.paths_mb),
        ]
        return [dict(zip(keys, row, strict=True)) for row in rows]


def rehearse(pipe: DiffusionPipeline, job: Job) -> Rehearsal:
    """Do the job once in small, with a batch of its own samples.

    Raises:
        InputError, TraceError: as `distill` does.
    """
    source = job.source()
    with tempfile.TemporaryDirectory(prefix="fewstep-") as place:
        small = _small(job, source, Path(place))
        given = PipelineJob.of(pipe, small)
        ladder = given.ladder
        start = time.perf_counter()
        sources = ladder.sources(show=False)
        seconds, made = time.perf_counter() - start, next(iter(sources.values()))
        disk = sum(file.stat().st_size for file in made.folder.iterdir()) / MB
        weights, before, measured = ladder.domain.start, None, []
        for number, (rung, whole) in enumerate(zip(small.rungs, job.rungs, strict=True), start=1):
            with peak_memory(str(device_of(ladder.domain.teacher.module))) as peak:
                lesson = ladder.lesson(rung, before, weights, sources)
                weights = ladder.train(number, lesson, show=False)
            measured.append(_measured(lesson, whole, job, Path(place) / f"{number}-{rung.method}", peak.rise_mb))
            before = rung
        assert weights is not None
        given.write(weights)
    whole_set = job.samples if source is None else len(source)
    share = whole_set / len(made)
    return Rehearsal(whole_set, seconds * share / HOUR, disk * share, tuple(measured))


def _small(job: Job, source: Source | None, place: Path) -> Job:
    rungs = [
        replace(rung, iterations=2, training={**rung.training, "save_every": 2, "compile": False}) for rung in job.rungs
    ]
    samples = max(rung.batch for rung in rungs)
    data = None if source is None else First(source, samples)
    here = replace(job, out=place, paths=None, ladder=tuple(rungs), samples=samples, check_every=0, show_every=0)
    return replace(here, data=data, columns={})


def _measured(lesson: Lesson, whole: Rung, job: Job, run: Path, peak_mb: float) -> Measured:
    log = [json.loads(line) for line in (run / "losses.jsonl").read_text(encoding="utf-8").splitlines()]
    seconds, settings = log[-1]["seconds"], whole.settings(job.seed)
    batch = whole.batch * settings.accumulate
    trained = lesson.distiller.modules
    frozen = {name: module for name, module in lesson.distiller.frozen.items() if name not in trained}
    return Measured(
        rung=f"{whole.method}, {whole.steps} steps",
        steps=whole.iterations,
        roles=(
            *(_role(name, module, settings) for name, module in trained.items()),
            *(_role(name, module, None) for name, module in frozen.items()),
        ),
        peak_mb=peak_mb,
        batch=batch,
        seconds_a_step=seconds,
        hours=seconds * whole.iterations / HOUR,
        warnings=tuple(_warnings(whole, batch)),
    )


def _role(name: str, module: nn.Module, settings: Settings | None) -> Role:
    """`settings` of what is trained, None of what is only run."""
    whole = sum(p.numel() for p in module.parameters())
    if settings is None:
        return Role(name, whole / 1e6, 0.0, weights_mb([module]), 0.0)
    trained = [p for p in module.parameters() if p.requires_grad]
    copies = 1 + 1 + STATES[settings.optimizer]  # gradient, average, states
    training = copies * sum(p.numel() * p.element_size() for p in trained) / MB
    return Role(name, whole / 1e6, sum(p.numel() for p in trained) / 1e6, weights_mb([module]), training)


def _warnings(rung: Rung, batch: int) -> Iterable[str]:
    if batch < rung.card.least_batch:
        yield (
            f"{rung.method} has an effective batch of {batch}; below {rung.card.least_batch} its students come out "
            f"noisy: raise batch, or accumulate."
        )
