"""`fewstep distill`: a student that needs few steps, from any flow pipeline and prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from fewstep.cli.check import at_least, device_here
from fewstep.cli.show import AsJson, RayAddress, Threads, Workers, note, print_facts, print_json, print_rows, working

if TYPE_CHECKING:
    from fewstep.distill.data.captions import Source
    from fewstep.distill.job import Job

COMMAND = "fewstep distill"
CONFIGS = (".yaml", ".yml")


class _TrainByDefault(TyperGroup):
    """`fewstep distill X` is `fewstep distill train X` where X is no command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["train", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_TrainByDefault,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Train a student that needs few steps: `fewstep distill zoo:shapes …` or `fewstep distill config.yaml`.",
)


@app.command()
def train(
    source: Annotated[
        str,
        typer.Argument(help="A teacher (zoo model, pipeline folder or hub id), or a YAML file with a whole job."),
    ],
    prompts: Annotated[
        str | None, typer.Option(help="A text file, one prompt a line, or task:NAME of the zoo.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Pictures with captions to train on: a folder, or a Hugging Face data set.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The run's folder; the student is in it.")] = None,
    method: Annotated[
        str | None, typer.Option(help="One of those that `fewstep distill methods` lists. [default: kd]")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="The student's steps. [default: 4]")] = None,
    samples: Annotated[int | None, typer.Option(help="Teacher paths to make. [default: 10000]")] = None,
    iterations: Annotated[int | None, typer.Option(help="Training steps. [default: 4000]")] = None,
    batch: Annotated[int | None, typer.Option(help="Samples in one training step. [default: 64]")] = None,
    rate: Annotated[float | None, typer.Option(help="The highest learning rate. [default: the method's]")] = None,
    start: Annotated[
        str | None, typer.Option(help="A pipeline to start from, instead of the teacher's weights.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of all random numbers. [default: 0]")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Try everything on one batch, and say what the whole will need.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train a student that does in few steps what the teacher does in many.

    Needs no pictures, only prompts. Options go before what the file says. A run that stops is continued by the same
    command. The student is a plain diffusers pipeline, with the teacher's guidance inside.

    **Example:** `fewstep distill zoo:shapes --prompts task:shapes --steps 4 --out runs/four`
    """
    given: dict[str, Any] = {
        "prompts": prompts,
        "data": data,
        "out": out,
        "method": method,
        "steps": steps,
        "samples": samples,
    }
    given |= {"iterations": iterations, "batch": batch, "rate": rate, "start": start, "seed": seed}
    for name in ("steps", "samples", "iterations", "batch"):
        at_least(1, given[name], f"--{name}", COMMAND)
    job = job_of(source, {name: value for name, value in given.items() if value is not None})
    if dry_run:
        _rehearse(job, as_json)
        return
    with working():
        from fewstep.checkpoints.load import load
        from fewstep.distill.run import distill

        score = job.prompts.score if isinstance(job.prompts, TaskPrompts) else None
        folder = distill(load(job.teacher).to(device_here(None)), job, score=score)
    note(f"The student is in {folder}.")


@app.command()
def paths(
    config: Annotated[Path, typer.Argument(help="A YAML file with a whole job, as for `fewstep distill`.")],
    workers: Workers = None,
    threads: Threads = None,
    ray: RayAddress = None,
    as_json: AsJson = False,
) -> None:
    """Make the teacher's paths of a job on many devices; training finds them done.

    The same command goes on where it stopped, and a worker that dies is replaced.

    **Example:** `fewstep distill paths examples/distill.yaml --workers 2`
    """
    for option, count in {"--workers": workers, "--threads": threads}.items():
        at_least(1, count, option, "fewstep distill paths")
    job = job_of(str(config), {})
    with working():
        from fewstep.batch.crew import Crew
        from fewstep.batch.paths import make_paths

        try:
            report = make_paths(job, Crew(workers=workers, threads=threads, ray=ray))
        except KeyboardInterrupt:
            note("Stopped. The shards that are made stay; the same command goes on from there.")
            raise
    facts = {"folder": str(report.folder), "samples": report.samples, "there_before": report.there}
    facts |= {"workers_replaced": report.replaced, "seconds": round(report.seconds, 2)}
    print_facts(facts, as_json=as_json)


@app.command()
def methods(as_json: AsJson = False) -> None:
    """List the methods: what each needs and costs, and when to take it.

    **Example:** `fewstep distill methods`
    """
    from fewstep.distill.catalog import CATALOG

    rows = [
        {
            "method": name,
            "needs": card.needs,
            "networks": card.networks,
            "cost": card.cost,
            "sampled by": " or ".join(card.samplers),
            "paper": card.paper,
            "when": card.when,
        }
        for name, card in CATALOG.items()
    ]
    print_rows(rows, as_json=as_json, title="Methods; cost is forward passes of a step for each sample")


@app.command()
def average(
    students: Annotated[
        list[str], typer.Argument(help="NAME=WEIGHT, two or more: zoo models or folders; the weights add up to 1.")
    ],
    steps: Annotated[int, typer.Option(help="Of the average.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.")],
    sampler: Annotated[str, typer.Option(help="How it is sampled: euler or renoise.")] = "euler",
    shift: Annotated[
        float | None, typer.Option(help="Of its times. [default: of the student with the most steps]")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Its name. [default: the teacher's and the steps]")] = None,
    stored: Annotated[str, typer.Option(help="Its weights on disk: float32, float16 or bfloat16.")] = "float32",
    share: Annotated[
        str | None, typer.Option(help="A pipeline on this disk with the other parts, which are then not written.")
    ] = None,
) -> None:
    """Average the weights of students of one teacher; what comes out is a student, and nothing is trained.

    **Example:** `fewstep distill average zoo:shapes-1step=0.35 zoo:shapes-4step=0.65 --steps 2 --sampler renoise
    --shift 2.33 --out runs/two`
    """
    with working():
        from fewstep.distill.average import average as write

        how: dict[str, Any] = {"sampler": sampler, "stored": stored}  # which it checks
        folder = write(_weighed(students), out, steps=steps, shift=shift, name=name, share=share, **how)
    note(f"The student is in {folder}.")


@app.command()
def report(run: Annotated[Path, typer.Argument(help="The folder of a run, finished or not.")]) -> None:
    """Draw a run: losses, what the guard said, quality and samples over the steps, in one HTML file.

    **Example:** `fewstep distill report runs/four`
    """
    with working():
        from fewstep.bench.training.page import report as draw

        page = draw(run)
    note(f"The report is in {page}.")


def _weighed(students: Sequence[str]) -> dict[str, float]:
    from fewstep.distill.typed import typed
    from fewstep.errors import InputError, bad_value

    weighed: dict[str, float] = {}
    for student in students:
        name, _, weight = student.rpartition("=")
        if not name or name in weighed:
            raise InputError(bad_value("students", "fewstep distill average", "NAME=WEIGHT, each name once", student))
        weighed[name] = typed(name, weight, float, "fewstep distill average")
    return weighed


def _rehearse(job: Job, as_json: bool) -> None:
    from dataclasses import asdict

    with working():
        from fewstep.bench.rehearsal import rehearse
        from fewstep.checkpoints.load import load

        found = rehearse(load(job.teacher).to(device_here(None)), job)
    if as_json:
        print_json({**asdict(found), "hours": found.hours})
        return
    print_rows(found.role_rows(), as_json=False, title="Networks: millions of parameters, and memory in MB")
    print_rows(found.time_rows(), as_json=False, title="What the whole run will take")
    for rung in found.rungs:
        for warning in rung.warnings:
            note(f"warning: {warning}")


def job_of(source: str, given: dict[str, Any]) -> Job:
    """The job of a YAML file or of a teacher, with the options put over it."""
    from fewstep.distill.job import read_config, read_job
    from fewstep.errors import InputError

    values = read_config(Path(source)) if source.endswith(CONFIGS) else {"teacher": source}
    values |= given
    if not values.get("teacher"):
        raise InputError(f"{source} must have the key 'teacher': a zoo model, a pipeline folder, or a hub id.")
    if "prompts" not in values and "data" not in values:
        raise InputError(f"{COMMAND} needs --prompts or --data, or a YAML file that has one of them.")
    if "out" not in values:
        raise InputError(f"{COMMAND} needs --out, or a YAML file that has it.")
    return read_job(values, tasks=TaskPrompts, drawn=_drawn)


def _drawn(name: str, samples: int, seed: int, frames: int | None) -> Source:
    """Data of the task of this name; of `NAME/near` in pairs that are near misses."""
    from fewstep.zoo.drawn import Drawn

    task = name.removesuffix("/near")
    return Drawn(task, samples, seed, frames, near=task != name)


class TaskPrompts:
    """A zoo task's prompts, as a function of how many and the seed, which remembers what they asked for."""

    def __init__(self, name: str) -> None:
        from fewstep.zoo.tasks import task

        self._task = task(name)
        self._asks: dict[str, Any] = {}

    def __call__(self, n: int, seed: int) -> list[str]:
        pairs = self._task.prompts(n, seed)
        self._asks.update(pairs)
        return [prompt for prompt, _ in pairs]

    def score(self, prompts: Sequence[str], images: Any) -> dict[str, float]:
        """The oracle's word on images of its prompts."""
        return {"prompt_accuracy": self._task.accuracy([self._asks[prompt] for prompt in prompts], images)}
