"""Teacher paths by workers are those that a training makes by itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fewstep.batch.crew import Crew
from fewstep.batch.paths import PathMaker, make_paths
from fewstep.distill.data.samples import Index
from fewstep.distill.job import Job, Rung
from fewstep.distill.pipelines import PipelineJob
from fewstep.errors import CheckpointError, InputError
from fewstep.models.load import load
from fewstep.models.manifest import manifest_of
from tests.distill.pipes import pipeline

SAMPLES = 1100  # two whole shards and a part


@pytest.fixture
def job(tmp_path: Path) -> Job:
    pipe = pipeline()
    pipe.save_pretrained(tmp_path / "teacher")
    manifest = manifest_of(pipe)
    assert manifest is not None
    manifest.write(tmp_path / "teacher")
    return Job(
        prompts=["a red ring", "a blue square"],
        teacher=str(tmp_path / "teacher"),
        out=tmp_path / "out",
        steps=2,
        teacher_steps=2,
        samples=SAMPLES,
        ladder=[Rung("kd", 2, 256)],
    )


@pytest.mark.usefixtures("ray_here")
def test_they_are_those_of_one_process(job: Job, tmp_path: Path) -> None:
    report = make_paths(job, Crew(workers=2, threads=1), show=False)
    assert (report.samples, report.there, report.replaced) == (SAMPLES, 0, 0)
    alone = replace(job, out=tmp_path / "alone")
    PipelineJob.of(load(job.teacher), alone).ladder.sources(show=False)
    assert Index.read(report.folder) == Index.read(tmp_path / "alone" / "paths")
    assert make_paths(job, Crew(workers=2), show=False).there == SAMPLES
    next(report.folder.glob("shard-00001*")).unlink()
    assert make_paths(job, Crew(workers=1), show=False).there == SAMPLES - 512
    assert Index.read(report.folder) == Index.read(tmp_path / "alone" / "paths")


def test_another_teacher_on_another_machine_is_refused(job: Job) -> None:
    with pytest.raises(CheckpointError, match="holds other files here than where the run was started"):
        PathMaker(job, {}, threads=1)


def test_a_job_without_paths_is_refused(job: Job) -> None:
    with pytest.raises(InputError, match="No method of this job learns from teacher paths: dmd2"):
        make_paths(replace(job, ladder=[Rung("dmd2", 2)]), Crew(), show=False)
