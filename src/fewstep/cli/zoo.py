"""`fewstep zoo`: the models that come with fewstep: list, score, export and train them."""

from __future__ import annotations

import dataclasses
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from fewstep.cli.check import at_least, device_here, recipe_of, sharing
from fewstep.cli.show import RECIPE_HELP, AsJson, note, print_facts, print_rows, working
from fewstep.errors import InputError, bad_value

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="The models that come with fewstep: list, score, export and train them.",
)
# The recipes of those that are trained from nothing; the others are distilled from these, with 'fewstep distill'.
TRAINED = {"shapes": "fewstep.zoo.shapes.train", "moving-shapes": "fewstep.zoo.moving.train"}
Name = Annotated[str, typer.Argument(help="A zoo model, as 'fewstep zoo list' names it.", metavar="NAME")]


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List the models that come with fewstep.

    **Example:** `fewstep zoo list`
    """
    with working():
        from fewstep.zoo import registry

        models = [dataclasses.asdict(registry.info(name)) for name in registry.NAMES]
    hidden = ("manifest",) if as_json else ("manifest", "made_by")  # the second is too long for a table
    print_rows([{k: v for k, v in model.items() if k not in hidden} for model in models], as_json=as_json)


@app.command("eval")
def eval_(
    name: Annotated[
        str, typer.Argument(help="A zoo model, or the folder of a student of one.", metavar="NAME", show_default=False)
    ],
    steps: Annotated[
        int | None, typer.Option(help="Denoising steps; without it, as many as the model is made for.")
    ] = None,
    prompts: Annotated[int, typer.Option(help="How many samples to make and judge.")] = 256,
    seed: Annotated[int, typer.Option(help="The same seed gives the same prompts and samples.")] = 0,
    recipe: Annotated[str | None, typer.Option("--recipe", "-r", help=RECIPE_HELP)] = None,
    as_json: AsJson = False,
) -> None:
    """Score a zoo model, or your student of one: its samples for random prompts, judged by the task's oracle.

    prompt_accuracy is the share of samples that show what was asked, frechet how far the set of samples is from real
    ones (0 is best; it depends on the number of prompts), diversity how much samples of one prompt differ. Started by
    torchrun, its processes share the work as the recipe's `parallel` says.

    **Example:** `fewstep zoo eval shapes-4step --steps 4 --prompts 256 --json`
    """
    at_least(1, steps, "--steps", "fewstep zoo eval")
    at_least(2, prompts, "--prompts", "fewstep zoo eval")
    with working():
        facts = _score(name.removeprefix("zoo:"), steps, prompts, seed, recipe)
    if facts is not None:
        print_facts(facts, as_json=as_json)


@app.command()
def export(
    name: Name, folder: Annotated[Path, typer.Argument(help="Where to write it; must not exist.", metavar="DIR")]
) -> None:
    """Write a zoo model as a whole, plain diffusers folder, which loads without fewstep.

    **Example:** `fewstep zoo export shapes-4step ./shapes-4step`
    """
    with working():
        from fewstep.zoo import registry

        registry.export(name.removeprefix("zoo:"), folder)
    note(f"Wrote {folder}: DiffusionPipeline.from_pretrained({str(folder)!r}) loads it.")


@app.command()
def train(
    name: Name,
    out: Annotated[Path, typer.Option("--out", "-o", help="The run's folder; an interrupted run goes on from it.")],
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps; without it, the best there is.")] = None,
    scenes: Annotated[int | None, typer.Option(help="Pictures or clips to draw for training.")] = None,
    vae_steps: Annotated[int | None, typer.Option(help="Training steps of the autoencoder.")] = None,
    text_steps: Annotated[int | None, typer.Option(help="Training steps of the text encoders.")] = None,
    teacher_steps: Annotated[int | None, typer.Option(help="Training steps of the diffusion model.")] = None,
    rate: Annotated[
        float | None,
        typer.Option(help="Times the diffusion model's learning rates: below 1 to go on from good weights."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the weights and the order of the data.")] = None,
    start: Annotated[str | None, typer.Option(help="A pipeline to go on from: zoo:NAME or a folder.")] = None,
    new_text: Annotated[
        bool, typer.Option("--new-text", help="With --start: teach new text encoders to read, in place of its own.")
    ] = False,
) -> None:
    """Train a zoo model from nothing, or on from one that is there.

    That takes hours on a CPU. A run that stops is continued by the same command. The model ends up in the run's folder
    'pipeline'.

    **Example:** `fewstep zoo train shapes --out runs/shapes`
    """
    given = {
        "scenes": scenes,
        "vae_steps": vae_steps,
        "text_steps": text_steps,
        "teacher_steps": teacher_steps,
        "rate": rate,
        "seed": seed,
        "start": start,
        "new_text": new_text,
    }
    settings: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    for key in settings.keys() - {"rate", "seed", "start", "new_text"}:
        at_least(1, settings[key], f"--{key.replace('_', '-')}", "fewstep zoo train")
    if rate is not None and not rate > 0:
        raise InputError(bad_value("--rate", "fewstep zoo train", "above 0", rate))
    if new_text and start is None:
        raise InputError("--new-text says what to replace in the pipeline that --start names, and there is no --start.")
    if (model := name.removeprefix("zoo:")) not in TRAINED:
        raise InputError(bad_value("NAME", "fewstep zoo train", f"one of {', '.join(TRAINED)}", model))
    with working():
        recipe = import_module(TRAINED[model])
        folder = recipe.train(out, recipe.Settings(**settings), device_here(device))
    note(f"Trained {folder}.")


def _score(name: str, steps: int | None, prompts: int, seed: int, recipe: str | None) -> dict[str, Any] | None:
    """The model's quality; None on all but the first process."""
    from fewstep.zoo.registry import info

    # First: a wrong name is told before anything heavy is imported.
    source, of, own_steps = _asked(name) if Path(name).is_dir() else (f"zoo:{name}", name, info(name).steps)

    from fewstep.accelerate import accelerate
    from fewstep.checkpoints.load import load
    from fewstep.zoo.evaluate import evaluate
    from fewstep.zoo.tasks import task_of

    plan = recipe_of(recipe)
    call: dict[str, Any] = {} if steps is None else {"num_inference_steps": steps}
    with sharing(plan) as rank:
        fast = accelerate(load(source).to(device_here(None)), plan)
        quality = evaluate(fast, task_of(of), prompts=prompts, seed=seed, show=rank == 0, **call)
    if rank:
        return None
    return {"name": name, "steps": steps or own_steps, "prompts": prompts, "seed": seed, **dataclasses.asdict(quality)}


def _asked(folder: str) -> tuple[str, str, int | None]:
    """The folder of a student, the zoo model whose task it does, and its steps."""
    from fewstep.models.manifest import FILE, Manifest

    manifest = Manifest.read(folder)
    if manifest is None:
        raise InputError(f"{folder} has no {FILE}, which tells whose student it is.")
    return folder, manifest.teacher or manifest.name, manifest.steps or manifest.call.get("num_inference_steps")
