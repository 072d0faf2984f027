"""All of a distillation in one call: trace the teacher, run its paths, climb the ladder, write the student.

    pipe = fewstep.load("zoo:shapes")
    distill(pipe, Job(prompts=["a red ring", …], out="out/four", steps=4, ladder=[Rung("kd"), Rung("dmd2")]))

Every part goes on where it stopped, so the same call again resumes it. `run` does the same from a configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.distill.data.prompts import PromptSource
from fewstep.distill.export import check_lora
from fewstep.distill.job import DrawnData, Job, read_job
from fewstep.distill.pipelines import PipelineJob
from fewstep.distill.watching.watch import Score
from fewstep.errors import InputError
from fewstep.models.load import load, resolve

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def distill(pipe: DiffusionPipeline, job: Job, *, score: Score | None = None, show: bool = True) -> Path:
    """Do the job; returns the folder of the student.

    `score` is asked about each sample grid, see `watch.Gallery`; what it says goes into `metrics.jsonl`.

    Raises:
        InputError: a value that does not fit, or a folder that holds another run.
        TraceError: a pipeline whose denoiser can't be found.
        FewstepError: the guard stopped a training that was never sound.
        KeyboardInterrupt: Ctrl-C; all is saved, the same call goes on.
    """
    if job.saved == "lora":
        check_lora(pipe)
    given = PipelineJob.of(pipe, job, score)
    parallel = given.ladder.parallel
    with parallel.joined():
        weights = given.ladder.climb(show=show)
        if parallel.first:
            given.write(weights)
        parallel.wait()
    return Path(job.out) / "student"


def run(
    config: Mapping[str, Any] | Path | str,
    *,
    tasks: Callable[[str], PromptSource] | None = None,
    drawn: DrawnData | None = None,
) -> Path:
    """Do the job that a configuration describes; see `job.read_job` and `distill`.

    Raises:
        InputError: an unknown or missing key, or a value that does not fit.
    """
    job = read_job(config, tasks=tasks, drawn=drawn)
    if not job.teacher:
        raise InputError("A distillation needs a 'teacher': a zoo name, a folder or a hub id.")
    resolve(job.teacher)
    return distill(load(job.teacher), job)
