"""`fewstep batch`: a file of prompts over the devices of this machine, or of a Ray cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli.check import at_least, recipe_of
from fewstep.cli.show import RECIPE_HELP, AsJson, RayAddress, Threads, Workers, note, print_facts, working
from fewstep.errors import InputError, bad_value
from fewstep.media import SUFFIXES

if TYPE_CHECKING:
    from fewstep.batch.prompts import Prompts, Request
    from fewstep.batch.run import Report

COMMAND = "fewstep batch"
FAILED = 1  # exit code where some outputs could not be made
TOLD = 10  # failures and broken lines that are told in words; of the rest the numbers


def batch(
    prompts: Annotated[Path, typer.Argument(help='A .jsonl file of {"prompt": …}, or a .txt file of plain lines.')],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder of the pictures or clips.")],
    model: Annotated[
        str, typer.Option("--model", "-m", help="A zoo model (zoo:shapes), a diffusers pipeline folder, or a hub id.")
    ],
    recipe: Annotated[str | None, typer.Option("--recipe", "-r", help=RECIPE_HELP)] = None,
    workers: Workers = None,
    together: Annotated[int, typer.Option("--batch", help="Prompts in one call, at most.")] = 1,
    group: Annotated[
        int, typer.Option(help="Processes a worker, each with its device, that share each call as the recipe says.")
    ] = 1,
    steps: Annotated[
        int | None, typer.Option(help="Denoising steps where a line says none; else as the model is made for.")
    ] = None,
    threads: Threads = None,
    suffix: Annotated[
        str | None,
        typer.Option("--format", help="png (the usual), jpg, webp; of clips webp (the usual), mp4, gif."),
    ] = None,
    ray: RayAddress = None,
    skip_broken: Annotated[bool, typer.Option("--skip-broken", help="Leave out lines that are wrong.")] = False,
    as_json: AsJson = False,
) -> None:
    """Draw every prompt of a file, on all devices, each once; the same command again goes on where it stopped.

    **Example:** `fewstep batch prompts.jsonl -o out/pictures --model zoo:shapes-4step --workers 2`
    """
    counts = {"--workers": workers, "--batch": together, "--group": group, "--steps": steps, "--threads": threads}
    for option, count in counts.items():
        at_least(1, count, option, COMMAND)
    ending = None if suffix is None else f".{suffix.lower().removeprefix('.')}"
    if ending is not None and ending not in SUFFIXES:
        names = ", ".join(one.removeprefix(".") for one in SUFFIXES)
        raise InputError(bad_value("--format", COMMAND, f"one of {names}", suffix))
    from fewstep.batch.prompts import read
    from fewstep.models.load import resolve

    found = read(prompts)
    _check(found, prompts, skip=skip_broken)
    resolve(model)  # a wrong name is told before anything heavy is imported
    with working():
        from fewstep.batch.crew import Crew
        from fewstep.batch.run import run

        crew = Crew(workers=workers, threads=threads, batch=together, group=group, ray=ray)
        try:
            report = run(with_steps(found.requests, steps), out, model, recipe_of(recipe), crew=crew, suffix=ending)
        except KeyboardInterrupt:
            note(f"Stopped. What is made stays in {out}; the same command goes on from there.")
            raise
    _tell(report, [one.line for one in found.broken], as_json)


def with_steps(requests: Sequence[Request], steps: int | None) -> list[Request]:
    """The requests, those that name no steps with these."""
    if steps is None:
        return list(requests)
    return [replace(request, call={"steps": steps, **request.call}) for request in requests]


def _check(found: Prompts, path: Path, *, skip: bool) -> None:
    """Refuse a file with lines that are wrong, or say which are left out."""
    sentences = _told({one.line: one.why for one in found.broken})
    if sentences and not skip:
        advice = "mend them, or leave them out with --skip-broken"
        many = len(found.broken)
        wrong = f"{path} has {many} broken line{'s' * (many > 1)}: {advice}."
        raise InputError("\n".join([*(f"{path}, {sentence}" for sentence in sentences), wrong]))
    for sentence in sentences:
        note(f"left out: {path}, {sentence}")
    if not found.requests:
        raise InputError(f"{path} must hold at least one prompt. Got none.")


def _tell(report: Report, left_out: Sequence[int], as_json: bool) -> None:
    for sentence in _told(report.failures):
        note(f"failed: {sentence}")
    facts: dict[str, Any] = {
        "folder": str(report.folder),
        "index": str(report.index),
        "lines": report.lines,
        "lines_left_out": left_out,
        "outputs": report.outputs,
        "there_before": report.there,
        "made": report.made,
        "lines_failed": list(report.failures),
        "workers_replaced": report.replaced,
        "seconds": round(report.seconds, 2),
        "outputs_a_second": round(report.rate, 3),
        "engaged": report.engaged,
    }
    print_facts(facts, as_json=as_json)
    if report.failures:
        raise typer.Exit(FAILED)


def _told(lines: Mapping[int, str]) -> list[str]:
    """Why lines are not made: the first few in words, of the others their numbers."""
    sentences = [f"line {line}: {why}" for line, why in list(lines.items())[:TOLD]]
    others = ", ".join(map(str, list(lines)[TOLD:]))
    return [*sentences, *([f"also lines {others}"] if others else [])]
