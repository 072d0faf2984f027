"""`fewstep distill`: a student that needs few steps, from any flow pipeline and prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli.check import at_least, device_here
from fewstep.cli.show import note, working

if TYPE_CHECKING:
    from fewstep.distill.job import Job

COMMAND = "fewstep distill"


def distill(
    teacher: Annotated[
        str | None, typer.Argument(help="A zoo model, a diffusers pipeline folder, or a hub id.")
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(help="A text file, one prompt a line, or task:NAME of the zoo.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The run's folder; the student is in it.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="A YAML file with any field of a job; options go before it.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="kd (on the teacher's paths) or progressive.")] = None,
    steps: Annotated[int | None, typer.Option(help="The student's steps. [default: 4]")] = None,
    samples: Annotated[int | None, typer.Option(help="Teacher paths to make. [default: 10000]")] = None,
    iterations: Annotated[int | None, typer.Option(help="Training steps. [default: 4000]")] = None,
    batch: Annotated[int | None, typer.Option(help="Paths in one training step. [default: 64]")] = None,
    rate: Annotated[float | None, typer.Option(help="The highest learning rate. [default: 0.0003]")] = None,
    start: Annotated[
        str | None, typer.Option(help="A pipeline to start from, instead of the teacher's weights.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of all random numbers. [default: 0]")] = None,
) -> None:
    """Train a student that does in few steps what the teacher does in many.

    Needs no pictures, only prompts. A run that stops is continued by the same command. The student is a plain
    diffusers pipeline, with the teacher's guidance inside.

    **Example:** `fewstep distill zoo:shapes --prompts task:shapes --steps 4 --out runs/four`
    """
    given: dict[str, Any] = {
        "teacher": teacher,
        "prompts": prompts,
        "out": out,
        "method": method,
        "steps": steps,
        "samples": samples,
    }
    given |= {"iterations": iterations, "batch": batch, "rate": rate, "start": start, "seed": seed}
    for name in ("steps", "samples", "iterations", "batch"):
        at_least(1, given[name], f"--{name}", COMMAND)
    with working():
        folder = _distill({name: value for name, value in given.items() if value is not None}, config)
    note(f"The student is in {folder}.")


def _distill(given: dict[str, Any], config: Path | None) -> Path:
    from fewstep.distill.run import distill as do
    from fewstep.models.load import load

    job = _job(given, config)
    return do(load(job.teacher).to(device_here(None)), job)


def _job(given: dict[str, Any], config: Path | None) -> Job:
    """The configuration with the options put over it."""
    from fewstep.distill.job import read_job
    from fewstep.errors import InputError

    if config is not None:
        job = read_job(config, tasks=prompts_of)
        whole = {field.name: getattr(job, field.name) for field in dataclasses.fields(job)}
        given = {**whole, **given}
    if not given.get("teacher"):
        raise InputError(f"{COMMAND} needs a TEACHER: a zoo model like zoo:shapes, a pipeline folder, or a hub id.")
    for name in ("prompts", "out"):
        if name not in given:
            raise InputError(f"{COMMAND} needs --{name}, or a --config that has it.")
    return read_job(given, tasks=prompts_of)


def prompts_of(task_name: str) -> Callable[[int, int], Sequence[str]]:
    """A zoo task's prompts as a function of how many and the seed."""
    from fewstep.zoo.tasks import task

    source = task(task_name)
    return lambda n, seed: [prompt for prompt, _ in source.prompts(n, seed)]
