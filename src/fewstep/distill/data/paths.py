"""Running the teacher: from prompts and seeded noise to stored paths. Or the prompts alone, where no data is needed.

Every sample's noise is drawn from its own number: paths do not depend on the batch, the shard or where a run stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.diffusion.samplers import sampler
from fewstep.diffusion.schedule import Denoiser, Schedule, Time
from fewstep.distill.data import conditions
from fewstep.distill.data.conditions import Condition
from fewstep.distill.data.samples import Index, PathSet
from fewstep.distill.data.seeds import generator
from fewstep.distill.data.store import Sizes, Stored, as_stored, batches, digest, fill, joined, samples_of
from fewstep.distill.engine.precision import (
    Precision,
    autocast,
    check_precision,
    compiled,
    uncompiled,
    warn_if_emulated,
)
from fewstep.distill.engine.roles import Swappable, device_of
from fewstep.errors import InputError, bad_value
from fewstep.models.fingerprint import fingerprint

SOLVERS = ("dpmpp_2m", "heun", "euler")  # deterministic, and what they ask the denoiser about are states of the path


@dataclass(frozen=True)
class PathSettings:
    """How to run the teacher.

    Attributes:
        solver: one of `SOLVERS`.
        batch: samples that run together.
        shard: samples a file; a stopped run goes on from the last whole one.
        seed: of the noise.
        stored: dtype of states and conditions on disk.
        precision, compile: of the teacher's forward, as in the loop's settings.

    Raises:
        InputError: a value out of its range.
    """

    solver: str = "dpmpp_2m"
    batch: int = 64
    shard: int = 512
    seed: int = 0
    stored: Stored = "float32"
    precision: Precision = "fp32"
    compile: bool = False

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise InputError(bad_value("solver", "the teacher's paths", f"one of {', '.join(SOLVERS)}", self.solver))
        check_precision(self.precision)
        _ = self.sizes  # checks its own values

    @property
    def sizes(self) -> Sizes:
        return Sizes(self.batch, self.shard, self.stored)


@dataclass(frozen=True)
class PathTask:
    """What the paths are of: one path a prompt.

    Attributes:
        prompts: one a sample, text or anything else that `condition` takes.
        condition: some of the prompts -> the teacher's condition for them.
        shape: of one sample's state, without the batch.
        times: the teacher's, falling, from noise to the schedule's end.
        steps: the student's; they keep every (len(times) − 1) / steps-th of the times.

    Raises:
        InputError: no prompts, or times that the student's steps do not divide.
    """

    prompts: Sequence[Any]
    condition: Condition
    shape: tuple[int, ...]
    times: tuple[float, ...]
    steps: int

    def __post_init__(self) -> None:
        if not self.prompts:
            raise InputError(bad_value("prompts", "the teacher's paths", "at least one", self.prompts))
        teacher_steps = len(self.times) - 1
        if self.steps < 1 or teacher_steps < 1 or teacher_steps % self.steps:
            rule = f"at least 1 and a divisor of the teacher's {teacher_steps}"
            raise InputError(bad_value("steps", "the student", rule, self.steps))

    @property
    def kept(self) -> tuple[float, ...]:
        """The student's times."""
        return self.times[:: (len(self.times) - 1) // self.steps]

    @property
    def facts(self) -> dict[str, Any]:
        """What tells the samples apart, whether paths or prompts, as JSON."""
        return {"prompts": len(self.prompts), "prompts_sha256": digest(self.prompts), "shape": list(self.shape)}


@dataclass(frozen=True)
class PathRun:
    """Paths that are to be made: by this process, or by several of which each makes some of the shards.

    Attributes:
        facts: what else must be equal to go on, as JSON: how the teacher is guided, for one.
    """

    teacher: Swappable
    task: PathTask
    settings: PathSettings
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def index(self) -> Index:
        """Of the whole set, without shards."""
        own = asdict(self.settings)
        used = {name: value for name, value in own.items() if name not in ("batch", "shard", "compile")}
        made_with = {
            **{"teacher": fingerprint(self.teacher.module), **self.facts},
            **{**self.task.facts, "teacher_times": list(self.task.times), **used},
        }
        return Index("paths", self.task.kept, made_with)

    def make(self, samples: range) -> dict[str, Tensor]:
        """Run the teacher for some samples, by their numbers."""
        return _run(self.teacher, self.task, samples, self.settings)

    @torch.no_grad()
    def shard(self, samples: range) -> dict[str, Tensor]:
        """A whole shard, batch by batch, as it is stored."""
        sizes = self.settings.sizes
        return joined([as_stored(self.make(part), sizes.stored) for part in batches(samples, sizes.batch)])


def make_paths(
    teacher: Swappable,
    task: PathTask,
    folder: Path | str,
    settings: PathSettings | None = None,
    *,
    facts: Mapping[str, Any] | None = None,
    show: bool = True,
) -> PathSet:
    """Run the teacher and store its paths in `folder`, going on after the shards that are there.

    `facts`: see `PathRun`. Damaged shards are made again. Ctrl-C finishes and keeps the shard in hand, then leaves.

    Raises:
        InputError: the folder holds paths that were made otherwise.
        MachineError: the disk is full, or this machine can't compile.
    """
    run = PathRun(teacher, task, settings or PathSettings(), facts or {})
    warn_if_emulated(run.settings.precision)
    with compiled([teacher.module], run.settings.compile):
        fill(Path(folder), run.index, run.make, run.settings.sizes, show=show)
    return PathSet(folder, conditions.template_of(task.condition, task.prompts))


def make_prompts(
    task: PathTask,
    folder: Path | str,
    sizes: Sizes | None = None,
    *,
    facts: Mapping[str, Any] | None = None,
    show: bool = True,
) -> PathSet:
    """Store what paths would be of, and no paths: conditions alone, for methods that sample from their student.

    No teacher runs. The rest as in `make_paths`.
    """
    sizes, folder = sizes or Sizes(), Path(folder)
    made_with = {**(facts or {}), **task.facts, "stored": sizes.stored}

    def make(samples: range) -> dict[str, Tensor]:
        return samples_of(conditions.of(task.condition, task.prompts[samples.start : samples.stop])[1])

    fill(folder, Index("prompts", task.kept[-1:], made_with), make, sizes, show=show)
    return PathSet(folder, conditions.template_of(task.condition, task.prompts))


def _run(teacher: Swappable, task: PathTask, samples: range, settings: PathSettings) -> dict[str, Tensor]:
    device = device_of(teacher.module)
    with uncompiled(teacher.module):
        cond, rows = conditions.of(task.condition, task.prompts[samples.start : samples.stop])
    noise = torch.stack([torch.randn(task.shape, generator=generator(settings.seed, "noise", i)) for i in samples])
    recorder = _Recorder(teacher, task.kept[:-1])
    with autocast(device, settings.precision):
        x = start_from(teacher.schedule, noise.to(device), task.times[0])
        x0 = sampler(settings.solver)(recorder, x, task.times, cond)
    return samples_of(rows, torch.stack([*(recorder.states[t] for t in task.kept[:-1]), x0], dim=1))


def start_from(schedule: Schedule, noise: Tensor, t: float) -> Tensor:
    """The state at the first time, for data of unit variance: noise of the standard deviation of x_t."""
    return noise * float((schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2).sqrt())


class _Recorder:
    """A denoiser that keeps the states that it was last asked about at the times to keep."""

    def __init__(self, inner: Denoiser, times: Sequence[float]) -> None:
        self.inner, self.times, self.schedule = inner, set(times), inner.schedule
        self.states: dict[float, Tensor] = {}

    def __call__(self, x_t: Tensor, t: Time, cond: Any = None) -> Tensor:
        if float(t) in self.times:
            self.states[float(t)] = x_t
        return self.inner(x_t, t, cond)
