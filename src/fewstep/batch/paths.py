"""The teacher's paths of a distillation, made by many workers: each makes whole shards, and this process writes them.

They are the paths that `fewstep distill` makes by itself, so it finds them done.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of

from fewstep.batch.crew import Crew
from fewstep.batch.engine import work
from fewstep.batch.schedule import Task
from fewstep.checkpoints.load import load
from fewstep.distill.data.paths import PathRun
from fewstep.distill.data.store import Filling
from fewstep.distill.engine.precision import compiled
from fewstep.distill.job import Job
from fewstep.distill.pipelines import PipelineJob
from fewstep.errors import CheckpointError, InputError, MachineError
from fewstep.machine import Machine, keep_freed_memory


@dataclass(frozen=True)
class Report:
    """What came of it.

    Attributes:
        folder: of the paths.
        samples: paths in it.
        there: of them before this run.
        replaced: how many workers died and were replaced.
        seconds: of the whole run.
    """

    folder: Path
    samples: int
    there: int
    replaced: int
    seconds: float


def make_paths(job: Job, crew: Crew, *, show: bool = True) -> Report:
    """Make what is lacking of a job's paths, going on after the shards that are there.

    Raises:
        InputError: no method of the job learns from paths, or its folder holds others.
        MachineError: no Ray, a full disk, or shards that could not be made.
        KeyboardInterrupt: Ctrl-C; the shards that are made stay.
    """
    start = time.perf_counter()
    if not any(rung.card.needs == "paths" for rung in job.rungs):
        raise InputError(f"No method of this job learns from teacher paths: {', '.join(r.method for r in job.rungs)}.")
    # A worker's own device holds the teacher; here it is only asked what it is.
    given = PipelineJob.of(load(job.teacher), job)
    run, folder = given.ladder.paths()
    filling = Filling.of(folder, run.index, run.settings.sizes, show=show)
    spoken = replace(job, prompts=list(given.prompts), data=None)  # all that a path depends on, without files

    def deliver(task: Task, output: bytes, facts: Mapping[str, Any]) -> None:
        filling.keep(int(task.name), tensors_of(output))

    tasks = [Task(str(number), {"start": one.start, "stop": one.stop}) for number, one in filling.todo]
    build = partial(PathMaker, spoken, run.index.made_with)
    outcome = work(tasks, build, replace(crew, batch=1), deliver, title="shards of teacher paths", show=show)
    if outcome.failures:
        number, why = next(iter(outcome.failures.items()))
        raise MachineError(f"{len(outcome.failures)} shards of {folder} could not be made; shard {number}: {why}")
    return Report(folder, run.index.wanted, filling.there, outcome.replaced, time.perf_counter() - start)


class PathMaker:
    """A `worker.Maker` of shards of paths, as files of safetensors.

    Raises:
        CheckpointError: the teacher here is not the one that the run began with.
    """

    def __init__(self, job: Job, made_with: Mapping[str, Any], threads: int) -> None:
        torch.set_num_threads(threads)
        keep_freed_memory()
        pipe = load(job.teacher).to(Machine.detect().device)
        pipe.set_progress_bar_config(disable=True)
        self._run: PathRun = PipelineJob.of(pipe, job).ladder.paths()[0]
        if self._run.index.made_with != made_with:
            raise CheckpointError(f"{job.teacher} holds other files here than where the run was started.")
        self._stack = ExitStack()  # compiled as long as the process lives
        self._stack.enter_context(compiled([self._run.teacher.module], self._run.settings.compile))

    @property
    def facts(self) -> dict[str, Any]:
        return {}

    def make(self, items: Sequence[Mapping[str, Any]]) -> list[bytes]:
        return [bytes_of(self._run.shard(range(item["start"], item["stop"]))) for item in items]
