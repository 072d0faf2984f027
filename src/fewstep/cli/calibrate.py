"""`fewstep calibrate`: learn once how a model moves over its steps, and choose a cache by a quality budget."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli.check import at_least, device_here, prompt_text, recipe_of
from fewstep.cli.show import RECIPE_HELP, AsJson, note, print_facts, working
from fewstep.errors import InputError, bad_value

if TYPE_CHECKING:
    pass

COMMAND = "fewstep calibrate"
PROMPTS = 48  # of a zoo model's task, where none are given


def calibrate(
    model: Annotated[str, typer.Argument(help="A zoo model (zoo:shapes), a diffusers pipeline folder, or a hub id.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The calibration file to write.")] = Path("calibration.json"),
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", "-p", help="Once for each prompt; every other one checks the budget. At least two."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Denoising steps; without it, as many as the model is made for.")
    ] = None,
    psnr: Annotated[
        float | None, typer.Option(help="Choose the fastest plan that keeps so many dB to the full run.")
    ] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", "-r", help=RECIPE_HELP)] = None,
    write: Annotated[
        Path | None, typer.Option("--write", "-w", help="With --psnr: write the recipe with the chosen cache here.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run a model in full on some prompts, and keep what every cache needs to know about it.

    The recipe is the one that the cache will run in: precision and quantization change what a model does. One file
    serves every gate, predictor and number of steps.

    **Example:** `fewstep calibrate zoo:shapes --psnr 35 --write recipe.yaml`
    """
    at_least(1, steps, "--steps", COMMAND)
    for one in prompt or ():
        prompt_text(one, COMMAND)
    if psnr is not None and not psnr > 0:
        raise InputError(bad_value("--psnr", COMMAND, "a number of dB above 0", psnr))
    if write is not None and psnr is None:
        raise InputError("--write writes the cache that --psnr chooses, and there is no --psnr.")
    with working():
        facts = _calibrate(model, out, prompt, steps, psnr, recipe, write)
    print_facts(facts, as_json=as_json)


def _calibrate(
    model: str,
    out: Path,
    given: list[str] | None,
    steps: int | None,
    psnr: float | None,
    recipe: str | None,
    write: Path | None,
) -> dict[str, Any]:
    plan = recipe_of(recipe)
    prompts = given or _of_the_zoo(model)
    if len(prompts) < 2:
        raise InputError(bad_value("--prompt", COMMAND, "given at least twice", prompts))

    from fewstep.accelerate import accelerate
    from fewstep.calibrate.run import calibrate as run
    from fewstep.checkpoints.load import load
    from fewstep.recipe import Recipe
    from fewstep.techniques.cache.budget import split
    from fewstep.techniques.cache.technique import Cache
    from fewstep.techniques.cache.tuner import GAINS, generators

    pipe = load(model).to(device_here(None))
    pipe.set_progress_bar_config(disable=True)
    learned, _ = split(prompts)
    call: dict[str, Any] = {"prompt": learned, "generator": generators(len(learned), 0)}
    if steps is not None:
        call["num_inference_steps"] = steps
    fast = accelerate(pipe, plan)
    with _shown():
        made = run(pipe, call, gains=GAINS)
    fast.remove()
    made.save(out)
    facts: dict[str, Any] = {"calibration": str(out), "model": model, "prompts": len(learned), **made.made_by}
    facts["gains"] = {round(one.sigma, 3): round(one.gain, 2) for one in made.gains}
    if psnr is None:
        return facts
    cache = Cache(budget={"psnr": psnr}, prompts=tuple(prompts), calibration=str(out))
    fast = accelerate(pipe, Recipe((*plan.techniques, cache)))
    with _shown():
        fast(**{**call, "prompt": learned[:1], "generator": generators(1, 0), "output_type": "latent"})
    engaged = next(one for one in fast.engaged if one.name == cache.name)
    settled = Recipe((*plan.techniques, cache.settled(engaged)))
    if write is not None:
        settled.save(write)
        note(f"Wrote {write}: fewstep.accelerate(pipe, {str(write)!r}) puts it on.")
    chosen = {"target_speedup": round(engaged.facts["target_speedup"], 3), "tried": dict(engaged.facts["trials"])}
    # `tried`: how many steps were computed, and the PSNR that the held-out samples keep
    return {**facts, "asked_psnr": psnr, **chosen}


def _of_the_zoo(model: str) -> list[str]:
    from fewstep.models.load import resolve

    resolve(model)
    if not model.startswith("zoo:"):
        raise InputError(f"{COMMAND} needs prompts for {model}: give --prompt at least twice.")
    from fewstep.zoo.tasks import task_of

    return [text for text, _ in task_of(model.removeprefix("zoo:")).prompts(PROMPTS, seed=0)]


@contextmanager
def _shown() -> Iterator[None]:
    """A line at the terminal that says what is being done."""
    from rich.console import Console

    from fewstep.calibrate.run import telling

    with Console(stderr=True).status("") as status, telling(status.update):
        yield
