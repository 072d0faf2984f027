"""A distillation from the command line: what it needs, and a run of a few steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fewstep.cli.distill import job_of
from fewstep.errors import InputError
from fewstep.zoo.drawn import Drawn
from tests.cli.conftest import Fewstep


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("a red ring\na blue square\n")
    return path


def test_options_go_before_the_configuration(tmp_path: Path, prompts: Path) -> None:
    config = tmp_path / "job.yaml"
    config.write_text(f"teacher: zoo:shapes\nprompts: {prompts}\nout: {tmp_path}\nsteps: 2\nrate: 1e-3\n")
    job = job_of(str(config), {"steps": 1})
    assert (job.steps, job.rungs[0].settings(0).rate, job.teacher) == (1, 1e-3, "zoo:shapes")


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (["zoo:shapes"], "--prompts"),
        (["zoo:shapes", "--prompts", "p.txt"], "--out"),
        (["zoo:shapes", "--prompts", "p.txt", "--out", "o", "--steps", 0], "--steps"),
        (["zoo:shapes", "--prompts", "p.txt", "--out", "o", "--method", "magic"], "magic"),
        (["nowhere.yaml"], "nowhere.yaml"),
        (["average", "zoo:shapes-1step", "--steps", 2, "--out", "o"], "NAME=WEIGHT"),
        (["average", "a=0.5", "a=0.5", "--steps", 2, "--out", "o"], "each name once"),
        (["average", "zoo:shapes-1step=half", "--steps", 2, "--out", "o"], "zoo:shapes-1step"),
    ],
)
def test_what_is_missing_or_wrong_is_named(fewstep: Fewstep, line: list[object], named: str) -> None:
    assert named in fewstep("distill", *line).refusal


def test_data_of_a_task_may_be_near_misses(tmp_path: Path) -> None:
    config = tmp_path / "job.yaml"
    config.write_text(f"teacher: zoo:shapes\nmethod: apt\ndata: task:shapes/near\nsamples: 8\nout: {tmp_path}\n")
    job = job_of(str(config), {})
    assert job.data == Drawn("shapes", 8, 0, near=True)
    config.write_text(config.read_text().replace("shapes/near", "moving-shapes/near"))
    with pytest.raises(InputError, match="The task moving-shapes knows no near misses"):
        job_of(str(config), {})


def test_a_run_of_a_few_steps(fewstep: Fewstep, model: Path, tmp_path: Path, prompts: Path) -> None:
    config = tmp_path / "job.yaml"
    config.write_text("teacher_steps: 2\nbatch: 2\nsamples: 4\nwarmup: 0\n")
    config.write_text(config.read_text() + f"teacher: {model}\nprompts: {prompts}\nout: {tmp_path / 'run'}\n")
    ran = fewstep("distill", config, "--steps", 1, "--iterations", 2)
    assert ran.code == 0, ran.err
    assert (tmp_path / "run" / "student" / "model_index.json").exists()
    picture = tmp_path / "a.png"
    assert fewstep("generate", tmp_path / "run" / "student", "a red ring", "-o", picture).code == 0
    assert picture.exists()


def test_the_methods_are_listed(fewstep: Fewstep) -> None:
    rows = json.loads(fewstep("distill", "methods", "--json").out)
    assert {"kd", "dmd2", "meanflow"} <= {row["method"] for row in rows}
    assert all(row["when"].endswith(".") for row in rows)


def test_students_are_averaged(fewstep: Fewstep, tmp_path: Path) -> None:
    folder = tmp_path / "two"
    line = [
        "zoo:shapes-1step=0.4",
        "zoo:shapes-4step=0.6",
        "--steps",
        2,
        "--sampler",
        "renoise",
        "--share",
        "zoo:shapes",
    ]
    ran = fewstep("distill", "average", *line, "--out", folder)
    assert ran.code == 0, ran.err
    assert json.loads((folder / "fewstep.json").read_text())["steps"] == 2
    assert not (folder / "vae").exists()
