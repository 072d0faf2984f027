"""`fewstep generate`: one picture or clip from one prompt, with or without a recipe."""

from __future__ import annotations

import inspect
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli.check import at_least, device_here, prompt_text, recipe_of, sharing
from fewstep.cli.show import RECIPE_HELP, AsJson, print_facts, working
from fewstep.errors import InputError, bad_value
from fewstep.files import replacing
from fewstep.media import SUFFIXES, encoded, fitting, shown

if TYPE_CHECKING:
    from fewstep.recipe import Recipe

COMMAND = "fewstep generate"


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
            "--out",
            "-o",
            help="The file: .png, .jpg, .webp (else out.png); of a clip .mp4, .webp, .gif (else out.webp).",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Draw one picture or clip and say how long it took.

    Started by torchrun, its processes share the work as the recipe's `parallel` says, and the first one writes.

    **Example:** `fewstep generate zoo:shapes "a large red ring left of a small blue square" -o ring.png`
    """
    prompt_text(prompt, COMMAND)
    at_least(1, steps, "--steps", COMMAND)
    if out is not None and out.suffix.lower() not in SUFFIXES:
        raise InputError(bad_value("--out", COMMAND, f"a file that ends in {', '.join(SUFFIXES)}", str(out)))
    with working():
        facts = _draw(model, prompt, recipe, steps, seed, out)
    if facts is not None:
        print_facts(facts, as_json=as_json)


def _draw(
    model: str, prompt: str, recipe: str | None, steps: int | None, seed: int, out: Path | None
) -> dict[str, Any] | None:
    """What was drawn; None on all but the first process."""
    from fewstep.models.load import resolve

    resolve(model)  # first: a wrong name is told before anything heavy is imported
    plan = recipe_of(recipe)

    from fewstep.checkpoints.load import load

    with sharing(plan) as rank:
        facts = _drawn(load(model), model, prompt, plan, steps, seed, out, write=rank == 0)
    return facts if rank == 0 else None


def _drawn(
    pipe: Any, model: str, prompt: str, plan: Recipe, steps: int | None, seed: int, out: Path | None, *, write: bool
) -> dict[str, Any]:
    import torch

    from fewstep.accelerate import accelerate

    moves = "num_frames" in inspect.signature(pipe.__call__).parameters
    out = out or Path("out.webp" if moves else "out.png")
    if out.suffix.lower() not in fitting(moves):
        what = f"a file that ends in {' or '.join(fitting(moves))} for a {'clip' if moves else 'picture'}"
        raise InputError(bad_value("--out", COMMAND, what, str(out)))
    if _cut_first(plan, pipe):
        fast = accelerate(pipe, plan)
        pipe.to(device_here(None))
    else:
        fast = accelerate(pipe.to(device_here(None)), plan)
    call: dict[str, Any] = {"prompt": prompt, "generator": torch.Generator("cpu").manual_seed(seed)}
    if steps is not None:
        call["num_inference_steps"] = steps
    start = time.perf_counter()
    frames = shown(fast(**call, output_type="pil"), model)[0]
    seconds = time.perf_counter() - start
    if write:
        with replacing(out) as aside:
            aside.write_bytes(encoded(frames, out.suffix))
    engaged = {part.name: part.facts for part in fast.engaged}
    return {
        "clip" if moves else "picture": str(out),
        "model": model,
        "seconds": round(seconds, 3),
        "seed": seed,
        "engaged": engaged,
    }


def _cut_first(plan: Recipe, pipe: Any) -> bool:
    """Whether layers are cut, so that what one device has no room for goes there in parts."""
    from fewstep.machine import Machine
    from fewstep.models.model import Model
    from fewstep.techniques.parallel.technique import Parallel

    layouts = [one.layout(Model(pipe), Machine.detect())[0] for one in plan.techniques if isinstance(one, Parallel)]
    return any(layout.tensor > 1 for layout in layouts)
