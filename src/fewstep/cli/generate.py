"""`fewstep generate`: one picture from one prompt, with or without a recipe."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli.check import at_least, device_here, prompt_text, recipe_of
from fewstep.cli.show import RECIPE_HELP, AsJson, print_facts, working
from fewstep.errors import InputError, bad_value
from fewstep.files import replacing

if TYPE_CHECKING:
    from PIL.Image import Image

COMMAND = "fewstep generate"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def generate(
    model: Annotated[str, typer.Argument(help="A zoo model (zoo:shapes), a diffusers pipeline folder, or a hub id.")],
    prompt: Annotated[str, typer.Argument(help="What the picture shall show, in words.")],
    recipe: Annotated[str | None, typer.Option("--recipe", "-r", help=RECIPE_HELP)] = None,
    steps: Annotated[
        int | None, typer.Option(help="Denoising steps; without it, as many as the model is made for.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same picture.")] = 0,
    out: Annotated[Path, typer.Option("--out", "-o", help="The picture file: .png, .jpg or .webp.")] = Path("out.png"),
    as_json: AsJson = False,
) -> None:
    """Draw one picture and say how long it took.

    **Example:** `fewstep generate zoo:shapes "a large red ring left of a small blue square" -o ring.png`
    """
    prompt_text(prompt, COMMAND)
    at_least(1, steps, "--steps", COMMAND)
    if out.suffix.lower() not in SUFFIXES:
        raise InputError(bad_value("--out", COMMAND, f"a file that ends in {', '.join(SUFFIXES)}", str(out)))
    with working():
        facts = _draw(model, prompt, recipe, steps, seed, out)
    print_facts(facts, as_json=as_json)


def _draw(model: str, prompt: str, recipe: str | None, steps: int | None, seed: int, out: Path) -> dict[str, Any]:
    from fewstep.models.load import resolve

    resolve(model)  # first: a wrong name is told before anything heavy is imported
    plan = recipe_of(recipe)

    import torch

    from fewstep.accelerate import accelerate
    from fewstep.checkpoints.load import load

    fast = accelerate(load(model).to(device_here(None)), plan)
    call: dict[str, Any] = {"prompt": prompt, "generator": torch.Generator("cpu").manual_seed(seed)}
    if steps is not None:
        call["num_inference_steps"] = steps
    start = time.perf_counter()
    image = _first_image(fast(**call), model)
    seconds = time.perf_counter() - start
    with replacing(out) as aside:
        image.save(aside)
    engaged = {part.name: part.facts for part in fast.engaged}
    return {"picture": str(out), "model": model, "seconds": round(seconds, 3), "seed": seed, "engaged": engaged}


def _first_image(output: Any, model: str) -> Image:
    from PIL.Image import Image

    images = getattr(output, "images", None)
    if not images or not isinstance(images[0], Image):
        raise InputError(f"{model} gives no pictures ({type(output).__name__}); name a text-to-image pipeline.")
    return images[0]
