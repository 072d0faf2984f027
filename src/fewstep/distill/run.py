"""All of a distillation in one call: trace the teacher, run its paths, train the student, write its pipeline.

    pipe = fewstep.load("zoo:shapes")
    distill(pipe, Job(prompts=["a red ring", …], out="out/four", steps=4, iterations=4000))

Every part goes on where it stopped, so the same call again resumes it. `run` does the same from a configuration.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from fewstep.diffusion.samplers import flow_times
from fewstep.distill.data import PathSet
from fewstep.distill.export import export, shift_of
from fewstep.distill.job import Job, read_job
from fewstep.distill.loop import Distiller, train
from fewstep.distill.methods.kd import KD
from fewstep.distill.methods.progressive import Progressive
from fewstep.distill.paths import PathSettings, PathTask, make_paths
from fewstep.distill.prompts import PromptSource, read_prompts
from fewstep.distill.roles import device_of, student_of
from fewstep.errors import InputError
from fewstep.machine import versions
from fewstep.models.load import for_each, load, resolve
from fewstep.models.manifest import Manifest, manifest_of
from fewstep.models.trace import TracedDenoiser, trace

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


SHARD = 512  # paths a file, about
TRACE_STEPS = 4  # what a trace needs to check itself; more would only take longer


def distill(pipe: DiffusionPipeline, job: Job, *, show: bool = True) -> Path:
    """Do the job; returns the folder of the student's pipeline.

    Raises:
        InputError: a value that does not fit, or a folder that holds another run.
        TraceError: a pipeline whose denoiser can't be found.
        KeyboardInterrupt: Ctrl-C; all is saved, the same call goes on.
    """
    out, prompts = Path(job.out), read_prompts(job.prompts, job.samples, job.seed)
    example = {"prompt": prompts[0], **job.call}
    traced = trace(pipe, **{**example, "num_inference_steps": TRACE_STEPS})
    if len(traced.modules) != 1:
        raise InputError(
            f"Only pipelines of one denoiser can be distilled so far. This has {', '.join(traced.modules)}."
        )
    if traced.schedule.kind != "flow":
        raise InputError(
            f"Only flow pipelines can be distilled so far. {type(pipe).__name__} is {traced.schedule.kind}."
        )
    shift = job.shift if job.shift is not None else shift_of(traced.times)
    paths = _paths(pipe, traced, prompts, job, shift, show)
    averages = (_train_kd if job.method == "kd" else _train_progressive)(traced, paths, job, shift, show)
    times = tuple(flow_times(job.steps, shift))
    manifest = _manifest(pipe, traced, job, times)
    source = Path(str(pipe.config.get("_name_or_path", ""))) if job.share else None
    return export(
        averages,
        pipe,
        out / "student",
        manifest,
        example,
        component=next(iter(traced.modules)),
        share=source,
        stored=job.stored,
    )


def run(config: Mapping[str, Any] | Path | str, *, tasks: Callable[[str], PromptSource] | None = None) -> Path:
    """Do the job that a configuration describes; see `job.read_job` and `distill`.

    Raises:
        InputError: an unknown or missing key, or a value that does not fit.
    """
    job = read_job(config, tasks=tasks)
    if not job.teacher:
        raise InputError("A distillation needs a 'teacher': a zoo name, a folder or a hub id.")
    resolve(job.teacher)
    return distill(load(job.teacher), job)


def _paths(
    pipe: DiffusionPipeline, traced: TracedDenoiser, prompts: Sequence[str], job: Job, shift: float, show: bool
) -> PathSet:
    negative = {**_defaults(pipe), **job.call}.get("negative_prompt")

    def condition(some: Sequence[Any]) -> Any:
        each = {} if negative is None else {"negative_prompt": for_each(negative, list(some))}
        return traced.condition(prompt=list(some), **each)

    times = tuple(flow_times(job.teacher_steps, shift))
    task = PathTask(prompts, condition, tuple(traced.noise.shape[1:]), times, job.kept)
    shard = job.batch * max(1, SHARD // job.batch)  # whole batches: an odd one would be compiled anew
    settings = PathSettings(batch=job.batch, shard=shard, seed=job.seed, precision=job.precision, compile=job.compile)
    facts = {"guidance": dict(traced.weights)}
    made = make_paths(traced, task, job.paths or Path(job.out) / "paths", settings, facts=facts, show=show)
    return PathSet(made.folder, made.template, job.steps if job.method == "kd" else None)


def _train_kd(traced: TracedDenoiser, paths: PathSet, job: Job, shift: float, show: bool) -> nn.Module:
    student = student_of(traced, _start(traced, job))
    return _trained(KD(student, job.distance), paths, job, "train", f"{job.steps} steps", show)


def _train_progressive(traced: TracedDenoiser, paths: PathSet, job: Job, shift: float, show: bool) -> nn.Module:
    teacher, weights = traced, _start(traced, job)
    for steps in job.stages:
        stage = Progressive(student_of(traced, weights), teacher, flow_times(2 * steps, shift), distance=job.distance)
        weights = _trained(stage, paths, job, f"stage-{steps}", f"{2 * steps} to {steps} steps", show)
        teacher = traced.with_module(weights, guided=False)
    assert weights is not None
    return weights


def _trained(distiller: Distiller[Any], paths: PathSet, job: Job, folder: str, title: str, show: bool) -> nn.Module:
    facts = {
        **{name: getattr(job, name) for name in ("method", "batch", "stages")},
        **{"start": str(job.start), "paths": paths.fingerprint, "loss": asdict(job.distance)},
    }
    device = device_of(distiller.modules["student"])
    batches = paths.batches(job.batch, job.seed, device)
    done = train(distiller, batches, Path(job.out) / folder, job.settings, facts=facts, title=title, show=show)
    if not done.finished:
        raise KeyboardInterrupt
    return done.averages["student"]


def _start(traced: TracedDenoiser, job: Job) -> nn.Module | None:
    if job.start is None:
        return None
    module: nn.Module = getattr(load(job.start), next(iter(traced.modules)))
    return module


def _defaults(pipe: DiffusionPipeline) -> dict[str, Any]:
    manifest = manifest_of(pipe)
    return dict(manifest.call) if manifest else {}


def _manifest(pipe: DiffusionPipeline, traced: TracedDenoiser, job: Job, times: tuple[float, ...]) -> Manifest:
    of_teacher = manifest_of(pipe)
    teacher = of_teacher.name if of_teacher else type(pipe).__name__
    call = {**_defaults(pipe), **job.call}
    if len(traced.weights) > 1:
        call = unguided(call, inspect.signature(type(pipe).__call__).parameters)
    counts = ("method", "teacher_steps", "samples", "iterations", "batch", "rate", "optimizer", "seed", "stages")
    return Manifest(
        name=job.name or f"{teacher}-{job.steps}step",
        call={**call, "num_inference_steps": job.steps},
        steps=job.steps,
        times=times,
        sampler="euler",
        guidance_inside=True,
        teacher=teacher,
        made_by={**{name: getattr(job, name) for name in counts}, "versions": versions()},
    )


def unguided(call: Mapping[str, Any], accepted: Container[str]) -> dict[str, Any]:
    """The call with classifier-free guidance off: a scale of 1 in the argument that this pipeline guides by."""
    kept = {name: value for name, value in call.items() if not name.startswith("negative_prompt")}
    return {**kept, "true_cfg_scale" if "true_cfg_scale" in accepted else "guidance_scale": 1.0}
