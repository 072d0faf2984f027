"""A diffusers pipeline as a domain: traced to be distilled, looked at while it learns, written as a pipeline again."""

from __future__ import annotations

import inspect
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from fewstep.distill.average import mean_of
from fewstep.distill.data.captions import Source
from fewstep.distill.data.encode import EncodeSettings, encode
from fewstep.distill.data.prompts import read_prompts
from fewstep.distill.data.samples import PathSet
from fewstep.distill.engine.loop import Watch
from fewstep.distill.engine.lora import Adapter
from fewstep.distill.export import export, export_lora
from fewstep.distill.job import Job
from fewstep.distill.ladder import Domain, Ladder, Lesson, processes_of
from fewstep.distill.methods.backward import Stepping
from fewstep.distill.schedulers import shift_of, student_scheduler, times_of
from fewstep.distill.watching.record import Recorder
from fewstep.distill.watching.watch import Gallery, Score, each
from fewstep.errors import InputError
from fewstep.machine import versions
from fewstep.models.causal import causal_of
from fewstep.models.load import for_each, load
from fewstep.models.manifest import Manifest, manifest_of
from fewstep.models.trace import TracedDenoiser, trace

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

TRACE_STEPS = 4  # what a trace needs to check itself; more would only take longer


@dataclass(frozen=True, eq=False)
class PipelineJob:
    """A job on a pipeline. `example`: a call of it. `score`: of the sample grids; see `watch.Gallery`."""

    pipe: DiffusionPipeline
    job: Job
    traced: TracedDenoiser
    prompts: Sequence[str]
    example: Mapping[str, Any]
    score: Score | None = None
    source: Source | None = None

    @classmethod
    def of(cls, pipe: DiffusionPipeline, job: Job, score: Score | None = None) -> PipelineJob:
        """Trace the pipeline.

        Raises:
            InputError: prompts that can't be read, or a pipeline that can't be distilled.
            TraceError: its denoiser can't be found.
        """
        parallel = processes_of(job)
        if parallel.size > 1:
            pipe.to(parallel.device)
        source = job.source()
        prompts = _prompts(job, source, job.samples if source is None or job.makes_paths else job.shown, job.seed)
        example = {"prompt": prompts[0], **job.call}
        _check_teacher(pipe)
        traced = trace(pipe, **{**example, "num_inference_steps": TRACE_STEPS})
        _check_traced(traced)
        given = cls(pipe, job, traced, prompts, example, score, source)
        # What can't be written in the end is told now.
        student_scheduler(pipe, given._times(job.steps), renoise=job.stepping == "renoise")
        return given

    @property
    def component(self) -> str:
        """The name of the pipeline's denoiser."""
        return next(iter(self.traced.modules))

    @property
    def guided(self) -> bool:
        """Whether the teacher is asked once for each branch of its guidance."""
        return len(self.traced.weights) > 1

    @cached_property
    def ladder(self) -> Ladder:
        """The job's trainings."""
        job, traced = self.job, self.traced
        domain = Domain(
            traced,
            self.prompts,
            self._condition,
            tuple(traced.noise.shape[1:]),
            # Others than those of the training, where the source has more.
            unseen=_prompts(job, self.source, job.shown, job.seed + 1),
            times=self._times,
            start=None if job.start is None else self._start(job.start).to(traced.noise.device),
            facts={"guidance": dict(traced.weights)},
            data=None if self.source is None else partial(self._encoded, self.source),
            watch=self._watch,
        )
        return Ladder(domain, job)

    def manifest(self, steps: int, sampler: Stepping) -> Manifest:
        """What the folder of a student of so many steps says about itself."""
        pipe, job, call = self.pipe, self.job, {**self._defaults, **self.job.call}
        of_teacher = manifest_of(pipe)
        teacher = of_teacher.name if of_teacher else type(pipe).__name__
        if self.guided:
            call = unguided(call, inspect.signature(type(pipe).__call__).parameters)
        return Manifest(
            name=job.name or f"{teacher}-{steps}step",
            call={**call, "num_inference_steps": steps},
            steps=steps,
            times=self._times(steps),
            sampler=sampler,
            guidance_inside=True,
            teacher=teacher,
            made_by={**job.facts(), "versions": versions()},
        )

    def write(self, weights: nn.Module) -> Path:
        """The student's folder, `out/student`, from what the ladder gave."""
        job, folder = self.job, Path(self.job.out) / "student"
        manifest, causal = self.manifest(job.steps, job.stepping), causal_of(weights)
        if causal is not None:
            manifest = replace(manifest, causal=asdict(causal.chunks))
        if job.saved == "lora":
            assert isinstance(weights, Adapter)
            return export_lora(weights, self.pipe, folder, manifest, component=self.component)
        return export(
            self.ladder.plain(weights, job.steps),
            self.pipe,
            folder,
            manifest,
            {name: value for name, value in self.example.items() if name not in job.call},  # that, guidance off, it has
            component=self.component,
            share=Path(str(self.pipe.config.get("_name_or_path", ""))) if job.share else None,
            stored=job.stored,
        )

    @cached_property
    def _defaults(self) -> dict[str, Any]:
        manifest = manifest_of(self.pipe)
        return dict(manifest.call) if manifest else {}

    def _start(self, start: Path | str | Mapping[str, float]) -> nn.Module:
        """The denoiser of a pipeline, or the average of several."""
        found: nn.Module = getattr(mean_of(start).pipe if isinstance(start, Mapping) else load(start), self.component)
        return found

    def _encoded(self, source: Source, show: bool) -> PathSet:
        place = Path(self.job.latents or Path(self.job.out) / "latents")
        facts = {"guidance": dict(self.traced.weights)}
        settings = EncodeSettings(seed=self.job.seed, frames=self.job.frames)
        return encode(
            self.pipe, self.traced, source, place, settings, condition=self._condition, facts=facts, show=show
        )

    def _times(self, steps: int) -> tuple[float, ...]:
        kind, shift = self.traced.schedule.kind, self.job.shift
        if kind == "flow" and shift is None:
            shift = shift_of(self.traced.times)
        return times_of(self.pipe.scheduler, kind, steps, shift or 1.0)

    def _condition(self, prompts: Sequence[Any]) -> Any:
        negative = {**self._defaults, **self.job.call}.get("negative_prompt")
        each_ = {} if negative is None else {"negative_prompt": for_each(negative, list(prompts))}
        return self.traced.condition(prompt=list(prompts), **each_)

    def _watch(self, lesson: Lesson, folder: Path) -> Watch | None:
        job, ladder, steps = self.job, self.ladder, lesson.rung.steps or self.job.steps
        recorder = [Recorder(folder)] if job.tensorboard else []
        if not job.show_every:
            return each(*recorder)
        gallery = Gallery(
            self.pipe,
            self.manifest(steps, lesson.sampler),
            [str(prompt) for prompt in ladder.domain.unseen],
            folder,
            every=job.show_every,
            last=lesson.rung.iterations,
            draws=job.draws,
            shown=job.shown,
            seed=job.seed,
            call=job.call,
            component=self.component,
            plain=lambda weights: ladder.plain(weights, steps),
            score=self.score,
        )
        return each(gallery, *recorder)


def _prompts(job: Job, source: Source | None, n: int, seed: int) -> list[str]:
    """n of the job's prompts, or the first captions of its data, of which no more are read: each may be a download."""
    if job.prompts or source is None:
        return read_prompts(job.prompts, n, seed)
    return read_prompts([one.caption for one in source.read(range(min(n, len(source))))], n, seed)


def unguided(call: Mapping[str, Any], accepted: Container[str]) -> dict[str, Any]:
    """The call with classifier-free guidance off: a scale of 1 in the argument that this pipeline guides by."""
    kept = {name: value for name, value in call.items() if not name.startswith("negative_prompt")}
    return {**kept, "true_cfg_scale" if "true_cfg_scale" in accepted else "guidance_scale": 1.0}


def _check_traced(traced: TracedDenoiser) -> None:
    if len(traced.modules) != 1:
        names = ", ".join(traced.modules)
        raise InputError(f"Only pipelines of one denoiser can be distilled so far. This has {names}.")


def _check_teacher(pipe: DiffusionPipeline) -> None:
    manifest = manifest_of(pipe)
    if manifest is not None and manifest.steps is not None:
        raise InputError(
            f"The teacher {manifest.name} is a student of {manifest.steps} steps itself: "
            f"distil {manifest.teacher or 'its teacher'}, and start from this one if you like (start)."
        )
