"""From one training to the next: each rung of a job starts from the student of the one before.

    ladder = Ladder(domain, job)
    weights = ladder.climb()              # makes what it trains on and trains, or goes on with both
    student = ladder.plain(weights, 4)    # a module of the teacher's class

A `Domain` is what is distilled: a traced pipeline (`pipelines`), or a network of your own in a few lines:

    teacher = Network(module, Schedule.flow())                      # called as module(x_t, t, cond)
    domain = Domain(teacher, labels, torch.tensor, shape=(2,))
    ladder = Ladder(domain, Job((), "run", steps=1, ladder=[Rung("kd"), Rung("dmd2")]))
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewstep.diffusion.samplers import flow_times
from fewstep.distill.data import conditions
from fewstep.distill.data.paths import PathRun, PathSettings, PathTask, make_paths, make_prompts
from fewstep.distill.data.samples import Content, PathBatch, PathSet
from fewstep.distill.data.seeds import derive
from fewstep.distill.data.store import Sizes
from fewstep.distill.engine.loop import Distiller, Settings, Watch, train
from fewstep.distill.engine.lora import Shared
from fewstep.distill.engine.parallel import Parallel, found
from fewstep.distill.engine.roles import Copies, Roles, Swappable, device_of
from fewstep.distill.job import Job, Rung
from fewstep.distill.makers import Given
from fewstep.distill.methods.backward import Stepping
from fewstep.distill.two_times import TwoTimes, fold
from fewstep.distill.watching.guard import Guard, Policy
from fewstep.distill.watching.probe import probe
from fewstep.errors import FewstepError
from fewstep.files import write_json

SHARD = 512  # samples a file, about
EXAMPLE = 4  # samples to try a method on


@dataclass(frozen=True, eq=False)
class Lesson:
    """One rung, ready to be trained."""

    rung: Rung
    distiller: Distiller[Any]
    source: PathSet
    sampler: Stepping

    def settings(self, seed: int) -> Settings:
        """The rung's; of the method's own rates those of modules that it trains, as an option may leave one out."""
        asked = self.rung.settings(seed)
        if "rates" in self.rung.training:
            return asked
        return replace(
            asked, rates={name: rate for name, rate in asked.rates.items() if name in self.distiller.modules}
        )


@dataclass(frozen=True, eq=False)
class Domain:
    """What is distilled.

    Attributes:
        teacher: guided, if it is guided at all.
        prompts: one a sample, whatever `condition` takes.
        condition: some of them -> what the teacher is told.
        shape: of one sample's state.
        unseen: prompts to look at while training; empty for the first of `prompts`.
        times: steps -> the student's, falling, with the end.
        start: the weights that the first rung starts from; None: the teacher's.
        facts: what else tells its teacher from another, as JSON; how it is guided, for one.
        data: makes or finishes the latents of real data, where there are some; told whether to show its progress.
        watch: what looks on at a lesson whose folder is given, see `loop.train`.
    """

    teacher: Swappable
    prompts: Sequence[Any]
    condition: Callable[[Sequence[Any]], Any]
    shape: tuple[int, ...]
    unseen: Sequence[Any] = ()
    times: Callable[[int], tuple[float, ...]] = lambda steps: tuple(flow_times(steps))
    start: nn.Module | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    data: Callable[[bool], PathSet] | None = None
    watch: Callable[[Lesson, Path], Watch | None] = lambda lesson, folder: None


@dataclass(frozen=True, eq=False)
class Ladder:
    """A job on a domain."""

    domain: Domain
    job: Job

    @cached_property
    def roles(self) -> Roles:
        """Where students and critics come from."""
        teacher = self.domain.teacher
        if self.job.roles == "copies":
            return Copies(teacher)
        recomputed = any(rung.settings(self.job.seed).checkpointing for rung in self.job.rungs)
        return Shared.over(teacher, self.job.rank, recomputed)

    @cached_property
    def parallel(self) -> Parallel:
        """This process among those that torchrun started.

        Raises:
            InputError, MachineError: other processes than the job asks for.
        """
        return processes_of(self.job)

    def climb(self, *, show: bool = True) -> nn.Module:
        """All rungs; the average of the last one's student.

        Raises:
            FewstepError: the guard stopped a training that was never sound.
            KeyboardInterrupt: Ctrl-C; all is saved.
        """
        if self.parallel.first:
            write_json(Path(self.job.out) / "job.json", {"teacher": self.job.teacher, **self.job.facts()})
        sources, weights, before = self.sources(show=show), self.domain.start, None
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
                self.domain.times(rung.steps),
                self.domain.times(2 * rung.steps),
                sampler,
                example,
                rung.distance,
                self.job.seed,
                self._data(rung, sources),
            )
            distiller = rung.card.make(given, **rung.options)
        return Lesson(rung, distiller, source, sampler)

    def train(self, number: int, lesson: Lesson, *, show: bool = True) -> nn.Module:
        """The average of the student after the lesson, which is the job's n-th rung.

        Raises:
            FewstepError: the guard stopped it, and it was never sound.
            KeyboardInterrupt: Ctrl-C; all is saved.
        """
        job, rung, source = self.job, lesson.rung, lesson.source
        folder, device = Path(job.out) / f"{number}-{rung.method}", device_of(self.domain.teacher.module)
        done = train(
            lesson.distiller,
            source.batches(rung.batch, job.seed, device),
            folder,
            lesson.settings(job.seed),
            facts={**rung.facts(), "start": str(job.start), "paths": source.fingerprint},
            guard=self._guard(lesson),
            parallel=self.parallel,
            watch=self.domain.watch(lesson, folder) if self.parallel.first else _look_away,
            title=f"{rung.method}, {rung.steps} steps",
            show=show,
        )
        if done.stopped is not None and done.best is None:
            raise FewstepError(done.stopped)
        if done.stopped is None and not done.finished:
            raise KeyboardInterrupt
        return done.averages["student"]

    def _made(self, show: bool) -> dict[Content, PathSet]:
        domain, job = self.domain, self.job
        needed: set[Content] = {rung.card.needs for rung in job.rungs}
        made: dict[Content, PathSet] = {}
        if domain.data is not None:
            made["latents"] = made["prompts"] = domain.data(show)
        if needed <= made.keys():
            return made
        run, place = self.paths()
        if needed == {"prompts"}:
            sizes = Sizes(run.settings.batch, run.settings.shard)
            return {"prompts": make_prompts(run.task, Path(job.out) / "prompts", sizes, show=show)}
        paths = make_paths(run.teacher, run.task, place, run.settings, facts=run.facts, show=show)
        from_paths: dict[Content, PathSet] = {"paths": paths, "latents": paths, "prompts": paths}
        return from_paths | made

    def paths(self) -> tuple[PathRun, Path]:
        """The teacher's paths as the job asks for them, and their folder."""
        domain, job = self.domain, self.job
        first = job.rungs[0]
        training, shard = first.settings(job.seed), first.batch * max(1, SHARD // first.batch)  # whole batches
        task = PathTask(domain.prompts, domain.condition, domain.shape, domain.times(job.teacher_steps), job.kept)
        precision = job.teacher_precision or training.precision
        settings = PathSettings(
            batch=first.batch, shard=shard, seed=job.seed, precision=precision, compile=training.compile
        )
        return PathRun(domain.teacher, task, settings, domain.facts), Path(job.paths or Path(job.out) / "paths")

    def _data(self, rung: Rung, sources: Mapping[Content, PathSet]) -> Callable[[torch.Generator], PathBatch] | None:
        """Batches of real data beside a rung's teacher paths."""
        if self.domain.data is None or not rung.card.with_data:
            return None
        data = sources["latents"]
        batches = data.batches(rung.batch, self.job.seed, device_of(self.domain.teacher.module))
        return lambda draw: batches(int(torch.randint(max(1, len(data) // rung.batch), (), generator=draw)))

    def _teacher(self, rung: Rung, before: Rung | None, weights: nn.Module | None) -> Swappable:
        """The domain's, or the student of the stage before in a progressive ladder."""
        teacher = self.domain.teacher
        if rung.method != "progressive" or before is None or before.steps != 2 * (rung.steps or 0):
            return teacher
        assert weights is not None
        return teacher.with_module(weights, guided=False)

    def _guard(self, lesson: Lesson) -> Guard | None:
        job, domain, rung = self.job, self.domain, lesson.rung
        if not job.check_every or rung.method == "finetune":  # which is not meant to need few steps
            return None
        assert rung.steps is not None
        watched = probe(
            domain.teacher,
            domain.condition,
            domain.unseen or domain.prompts[: job.shown],
            job.draws,
            domain.shape,
            self.domain.times(rung.steps),
            self.domain.times(job.teacher_steps),
            lesson.sampler,
            job.seed,
        )
        return Guard(watched, Policy(every=job.check_every))

    def _student(self, rung: Rung, weights: nn.Module | None) -> Swappable:
        if not rung.card.two_times:
            return self.roles.student(self._one_time(weights, rung.steps or self.job.steps))
        start = self.domain.teacher.module if weights is None else weights
        return self.roles.student(start if isinstance(start, TwoTimes) else TwoTimes(start))

    def _one_time(self, weights: nn.Module | None, steps: int) -> Any:
        """A student that is told one time only: a flow map folded for these steps."""
        if not isinstance(weights, TwoTimes):
            return weights
        domain = self.domain
        cond = conditions.template_of(domain.condition, domain.prompts)
        x = torch.zeros(2, *domain.shape, device=device_of(weights))
        return fold(domain.teacher.with_module(weights, guided=False), self.domain.times(steps), x, cond)


def processes_of(job: Job) -> Parallel:
    """This process among those that torchrun started, as the job wants them.

    Raises:
        InputError, MachineError: others than it asks for.
    """
    kind = job.parallel or ("ddp" if "WORLD_SIZE" in os.environ else "none")
    # With a critic, processes run their students unequally often: each draws where its rollout ends.
    return found(kind, job.processes, whole=any("critic" in rung.card.rates for rung in job.rungs))


def _look_away(step: int, averages: Mapping[str, nn.Module]) -> None:
    """What the other processes do while the first one looks: sharded averages are gathered by all of them."""
