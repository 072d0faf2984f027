"""`fewstep generate`: one picture or clip from one prompt, with or without a recipe."""

from __future__ import annotations

import inspect
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
MOVING = (".gif", ".webp")  # what holds a clip
SUFFIXES = (".png", ".jpg", ".jpeg", *MOVING)
FPS = 16  # of a clip


def generate(
    model: Annotated[str, typer.Argument(help="A zoo model (zoo:shapes), a diffusers pipeline folder, or a hub id.")],
    prompt: Annotated[str, typer.Argument(help="What it shall show, in words.")],
    recipe: Annotated[str | None, typer.Option("--recipe", "-r", help=RECIPE_HELP)] = None,
    steps: Annotated[
        int | None, typer.Option(help="Denoising steps; without it, as many as the model is made for.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same picture or clip.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="The file: .png, .jpg or .webp (else out.png); of a clip .gif or .webp (else out.webp)."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Draw one picture or clip and say how long it took.

    **Example:** `fewstep generate zoo:shapes "a large red ring left of a small blue square" -o ring.png`
    """
    prompt_text(prompt, COMMAND)
    at_least(1, steps, "--steps", COMMAND)
    if out is not None and out.suffix.lower() not in SUFFIXES:
        raise InputError(bad_value("--out", COMMAND, f"a file that ends in {', '.join(SUFFIXES)}", str(out)))
    with working():
        facts = _draw(model, prompt, recipe, steps, seed, out)
    print_facts(facts, as_json=as_json)


def _draw(
    model: str, prompt: str, recipe: str | None, steps: int | None, seed: int, out: Path | None
) -> dict[str, Any]:
    from fewstep.models.load import resolve

    resolve(model)  # first: a wrong name is told before anything heavy is imported
    plan = recipe_of(recipe)

    import torch

    from fewstep.accelerate import accelerate
    from fewstep.checkpoints.load import load

    pipe = load(model).to(device_here(None))
    moves = "num_frames" in inspect.signature(pipe.__call__).parameters
    out = out or Path("out.webp" if moves else "out.png")
    if moves and out.suffix.lower() not in MOVING:
        raise InputError(bad_value("--out", COMMAND, f"a file that ends in {' or '.join(MOVING)} for a clip", str(out)))
    fast = accelerate(pipe, plan)
    call: dict[str, Any] = {"prompt": prompt, "generator": torch.Generator("cpu").manual_seed(seed)}
    if steps is not None:
        call["num_inference_steps"] = steps
    start = time.perf_counter()
    images = _images(fast(**call, output_type="pil"), model)
    seconds = time.perf_counter() - start
    with replacing(out) as aside:
        if moves:
            images[0].save(aside, save_all=True, append_images=images[1:], duration=1000 // FPS, loop=0)
        else:
            images[0].save(aside)
    engaged = {part.name: part.facts for part in fast.engaged}
    return {
        "clip" if moves else "picture": str(out),
        "model": model,
        "seconds": round(seconds, 3),
        "seed": seed,
        "engaged": engaged,
    }


def _images(output: Any, model: str) -> list[Image]:
    """The pictures of a call, or the frames of its first clip."""
    from PIL.Image import Image

    images = getattr(output, "images", None) or next(iter(getattr(output, "frames", None) or [[]]))
    if not images or not isinstance(images[0], Image):
        raise InputError(f"{model} gives no pictures ({type(output).__name__}); name a text-to-image pipeline.")
    return list(images)
