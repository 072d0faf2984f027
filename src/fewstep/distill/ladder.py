"""From one training to the next: each rung of a job starts from the student of the one before.

ladder = Ladder.of(pipe, job)      # traces the pipeline
weights = ladder.climb()           # makes the paths and trains, or goes on with both
student = ladder.plain(weights)    # a module of the teacher's class
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fewstep.diffusion.samplers import flow_times
from fewstep.distill.data import Content, PathSet
from fewstep.distill.export import flow_scheduler, shift_of
from fewstep.distill.guard import Guard, Policy
from fewstep.distill.job import Job, Rung
from fewstep.distill.loop import Distiller, Watch, train
from fewstep.distill.lora import Shared
from fewstep.distill.makers import Given
from fewstep.distill.methods.backward import Stepping
from fewstep.distill.parallel import Parallel, found
from fewstep.distill.paths import PathSettings, PathTask, make_paths, make_prompts
from fewstep.distill.probe import probe
from fewstep.distill.prompts import read_prompts
from fewstep.distill.record import Recorder
from fewstep.distill.roles import Copies, Roles, Swappable, device_of
from fewstep.distill.seeds import derive
from fewstep.distill.store import Sizes
from fewstep.distill.student import manifest_for
from fewstep.distill.two_times import TwoTimes, fold
from fewstep.distill.watch import Gallery, Score, each
from fewstep.errors import FewstepError, InputError
from fewstep.files import write_json
from fewstep.models.load import for_each, load
from fewstep.models.manifest import Manifest, manifest_of
from fewstep.models.trace import TracedDenoiser, trace

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

SHARD = 512  # samples a file, about
TRACE_STEPS = 4  # what a trace needs to check itself; more would only take longer
EXAMPLE = 4  # samples to try a method on


@dataclass(frozen=True, eq=False)
class Lesson:
    """One rung, ready to be trained."""

    rung: Rung
    distiller: Distiller[Any]
    source: PathSet
    sampler: Stepping


@dataclass(frozen=True, eq=False)
class Ladder:
    """A job with its pipeline traced.

    Attributes:
        example: a call of the pipeline.
        shift: of the times; see `samplers.flow_times`.
        start: the weights that the first rung starts from, None for the teacher's.
    """

    pipe: DiffusionPipeline
    job: Job
    parallel: Parallel
    teacher: TracedDenoiser
    roles: Roles
    prompts: Sequence[str]
    example: Mapping[str, Any]
    negative: Any
    shift: float
    start: nn.Module | None
    score: Score | None = None

    @classmethod
    def of(cls, pipe: DiffusionPipeline, job: Job, score: Score | None = None) -> Ladder:
        """Trace the pipeline. `score`: of the sample grids.

        Raises:
            InputError: prompts that can't be read, or a pipeline that can't be distilled.
            TraceError: its denoiser can't be found.
        """
        parallel = found(job.parallel or ("ddp" if "WORLD_SIZE" in os.environ else "none"), job.processes)
        if parallel.device.type == "cuda" and parallel.size > 1:
            pipe.to(parallel.device)
        prompts = read_prompts(job.prompts, job.samples, job.seed)
        example = {"prompt": prompts[0], **job.call}
        _check_teacher(pipe)
        traced = trace(pipe, **{**example, "num_inference_steps": TRACE_STEPS})
        if len(traced.modules) != 1:
            raise InputError(
                f"Only pipelines of one denoiser can be distilled so far. This has {', '.join(traced.modules)}."
            )
        if traced.schedule.kind != "flow":
            raise InputError(
                f"Only flow pipelines can be distilled so far. {type(pipe).__name__} is {traced.schedule.kind}."
            )
        of_teacher = manifest_of(pipe)
        negative = {**(dict(of_teacher.call) if of_teacher else {}), **job.call}.get("negative_prompt")
        shift = job.shift if job.shift is not None else shift_of(traced.times)
        start: nn.Module | None = None
        if job.start is not None:
            start = getattr(load(job.start), next(iter(traced.modules)))
        roles = Copies(traced) if job.roles == "copies" else Shared.over(traced, job.rank)
        return cls(pipe, job, parallel, traced, roles, prompts, example, negative, shift, start, score)

    @property
    def component(self) -> str:
        """The name of the pipeline's denoiser."""
        return next(iter(self.teacher.modules))

    def manifest(self, steps: int, sampler: Stepping) -> Manifest:
        """Of a student of so many steps."""
        return manifest_for(self.pipe, self.job, self.times(steps), sampler, guided=len(self.teacher.weights) > 1)

    def times(self, steps: int) -> tuple[float, ...]:
        return tuple(flow_times(steps, self.shift))

    def climb(self, *, show: bool = True) -> nn.Module:
        """All rungs; the average of the last one's student.

        Raises:
            KeyboardInterrupt: Ctrl-C; all is saved.
        """
        if self.parallel.first:
            write_json(Path(self.job.out) / "job.json", {"teacher": self.job.teacher, **self.job.facts()})
        sources, weights, before = self.sources(show=show), self.start, None
        for number, rung in enumerate(self.job.rungs, start=1):
            weights = self.train(number, self.lesson(rung, before, weights, sources), show=show)
            before = rung
        assert weights is not None
        return weights

    def plain(self, weights: nn.Module, steps: int) -> nn.Module:
        """A trained student as a module of the teacher's class, for so many steps."""
        return self.roles.plain(self._one_time(weights, steps))

    def sources(self, *, show: bool = True) -> dict[Content, PathSet]:
        """What the rungs train on, made or finished by the first process: teacher paths only where one needs them."""
        if not self.parallel.first:
            self.parallel.wait()
            return self._made(show=False)
        made = self._made(show)
        self.parallel.wait()
        return made

    def _made(self, show: bool) -> dict[Content, PathSet]:
        needed: set[Content] = {rung.card.needs for rung in self.job.rungs}
        if needed == {"prompts"}:
            return {"prompts": self._only_prompts(show)}
        paths = self._paths(show)
        return {"paths": paths, "latents": paths, "prompts": paths}

    def _paths(self, show: bool) -> PathSet:
        job, first = self.job, self.job.rungs[0]
        training, shard = first.settings(job.seed), _shard(first)
        settings = PathSettings(
            batch=first.batch, shard=shard, seed=job.seed, precision=training.precision, compile=training.compile
        )
        facts, folder = {"guidance": dict(self.teacher.weights)}, job.paths or Path(job.out) / "paths"
        return make_paths(self.teacher, self._task(), folder, settings, facts=facts, show=show)

    def _only_prompts(self, show: bool) -> PathSet:
        sizes = Sizes(batch=self.job.rungs[0].batch, shard=_shard(self.job.rungs[0]))
        return make_prompts(self._task(), Path(self.job.out) / "prompts", sizes, show=show)

    def _task(self) -> PathTask:
        shape = tuple(self.teacher.noise.shape[1:])
        return PathTask(self.prompts, self.condition, shape, self.times(self.job.teacher_steps), self.job.kept)

    def condition(self, prompts: Sequence[Any]) -> Any:
        """What the teacher is told for these prompts."""
        each = {} if self.negative is None else {"negative_prompt": for_each(self.negative, list(prompts))}
        return self.teacher.condition(prompt=list(prompts), **each)

    def _teacher(self, rung: Rung, before: Rung | None, weights: nn.Module | None) -> Swappable:
        """The pipeline, or the student of the stage before in a progressive ladder."""
        if rung.method != "progressive" or before is None or before.steps != 2 * (rung.steps or 0):
            return self.teacher
        assert weights is not None
        return self.teacher.with_module(weights, guided=False)

    def lesson(
        self, rung: Rung, before: Rung | None, weights: nn.Module | None, sources: Mapping[Content, PathSet]
    ) -> Lesson:
        """What is done on a rung, by a student that starts from these weights."""
        assert rung.steps is not None
        teacher, source = self._teacher(rung, before, weights), sources[rung.card.needs]
        if rung.card.needs == "paths":
            source = PathSet(source.folder, source.template, rung.steps)
        sampler = self.job.sampler or rung.card.samplers[0]
        example = source.read(range(min(EXAMPLE, len(source))), device_of(teacher.module))
        with torch.random.fork_rng():
            torch.manual_seed(derive(self.job.seed, rung.method))  # adapters and heads start at random
            given = Given(
                teacher,
                self._student(rung, weights),
                self.roles.another,
                self.times(rung.steps),
                self.times(2 * rung.steps),
                sampler,
                example,
                rung.distance,
                self.job.seed,
            )
            distiller = rung.card.make(given, **rung.options)
        return Lesson(rung, distiller, source, sampler)

    def train(self, number: int, lesson: Lesson, *, show: bool = True) -> nn.Module:
        """The average of the student after the lesson, which is the job's n-th rung.

        Raises:
            KeyboardInterrupt: Ctrl-C; all is saved.
        """
        job, rung, source = self.job, lesson.rung, lesson.source
        folder, device = Path(job.out) / f"{number}-{rung.method}", device_of(self.teacher.module)
        gallery = self._gallery(lesson, folder)
        done = train(
            lesson.distiller,
            source.batches(rung.batch, job.seed, device),
            folder,
            rung.settings(job.seed),
            facts={**rung.facts(), "start": str(job.start), "paths": source.fingerprint},
            guard=self._guard(lesson),
            parallel=self.parallel,
            watch=gallery,
            title=f"{rung.method}, {rung.steps} steps",
            show=show,
        )
        if done.stopped is not None and done.best is None:
            raise FewstepError(done.stopped)
        if done.stopped is None and not done.finished:
            raise KeyboardInterrupt
        return done.averages["student"]

    def _guard(self, lesson: Lesson) -> Guard | None:
        job, rung = self.job, lesson.rung
        if not job.check_every or rung.method == "finetune":  # which is not meant to need few steps
            return None
        assert rung.steps is not None
        watched = probe(
            self.teacher,
            self.condition,
            self._unseen,
            job.draws,
            self.teacher.noise.shape[1:],
            self.times(rung.steps),
            self.times(job.teacher_steps),
            lesson.sampler,
            job.seed,
        )
        return Guard(watched, Policy(every=job.check_every))

    def _gallery(self, lesson: Lesson, folder: Path) -> Watch | None:
        job, rung = self.job, lesson.rung
        if not job.show_every or not self.parallel.first:
            return None
        assert rung.steps is not None
        gallery = Gallery(
            self.pipe,
            self.manifest(rung.steps, lesson.sampler),
            self._unseen,
            folder,
            every=job.show_every,
            last=rung.iterations,
            draws=job.draws,
            shown=job.shown,
            seed=job.seed,
            call=job.call,
            component=self.component,
            plain=lambda weights: self.plain(weights, rung.steps or job.steps),
            scheduler=flow_scheduler(self.pipe.scheduler, self.times(rung.steps), renoise=lesson.sampler == "renoise"),
            score=self.score,
        )
        return each(gallery, Recorder(folder)) if job.tensorboard else gallery

    @cached_property
    def _unseen(self) -> list[str]:
        """Prompts to look at: others than those of the training where the source has more."""
        return read_prompts(self.job.prompts, self.job.shown, self.job.seed + 1)

    def _student(self, rung: Rung, weights: nn.Module | None) -> Swappable:
        if not rung.card.two_times:
            return self.roles.student(self._one_time(weights, rung.steps or self.job.steps))
        start = self.teacher.module if weights is None else weights
        return self.roles.student(start if isinstance(start, TwoTimes) else TwoTimes(start))

    def _one_time(self, weights: nn.Module | None, steps: int) -> Any:
        """A student that is told one time only: a flow map folded for these steps."""
        if not isinstance(weights, TwoTimes):
            return weights
        two = self.teacher.with_module(weights, guided=False)
        return fold(two, self.times(steps), self.teacher.noise, self.teacher.cond)


def _shard(rung: Rung) -> int:
    """Samples a file, in whole batches: an odd one would be compiled anew."""
    return rung.batch * max(1, SHARD // rung.batch)


def _check_teacher(pipe: DiffusionPipeline) -> None:
    manifest = manifest_of(pipe)
    if manifest is not None and manifest.steps is not None:
        raise InputError(
            f"The teacher {manifest.name} is a student of {manifest.steps} steps itself: "
            f"distil {manifest.teacher or 'its teacher'}, and start from this one if you like (start)."
        )
