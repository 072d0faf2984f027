"""`fewstep bench`: the demo's measurement for any pipeline and recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fewstep.cli.check import at_least, recipe_of
from fewstep.cli.show import RECIPE_HELP, AsJson, print_report, working
from fewstep.errors import InputError, bad_value

COMMAND = "fewstep bench"


def bench(
    model: Annotated[str, typer.Argument(help="A zoo model (zoo:shapes), a diffusers pipeline folder, or a hub id.")],
    recipe: Annotated[str, typer.Option("--recipe", "-r", help=RECIPE_HELP)],
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt to draw; may be given again and again.")] = None,
    task: Annotated[str | None, typer.Option(help="A zoo task instead: its prompts, judged by its oracle.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the baseline; without it, the model's own.")] = None,
    batch: Annotated[int, typer.Option(help="Pictures in one call.")] = 4,
    rounds: Annotated[int, typer.Option(help="Calls of each row; its time is their median.")] = 3,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder for the report.")] = Path("out/bench"),
    as_json: AsJson = False,
) -> None:
    """Measure what a recipe gains on a model, and what it costs: each trick alone, and the stack growing by one a row.

    Baseline and tricks run in turn in one process, and stand beside the same model with fewer steps.

    **Example:** `fewstep bench zoo:shapes --recipe examples/fast.yaml --task shapes`
    """
    for option, value in (("--steps", steps), ("--batch", batch), ("--rounds", rounds)):
        at_least(1, value, option, COMMAND)
    if not prompt and task is None:
        raise InputError(bad_value("--prompt", COMMAND, "given at least once, where no --task is", prompt))
    call: dict[str, Any] = {} if steps is None else {"num_inference_steps": steps}
    with working():
        from fewstep.bench.pipelines import run

        report = run(
            model,
            recipe_of(recipe),
            out=out,
            task=task,
            prompts=prompt or (),
            call=call,
            batch=batch,
            rounds=rounds,
            show=False,
        )
    print_report(report, out, as_json=as_json)
