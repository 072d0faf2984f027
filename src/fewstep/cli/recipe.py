"""`fewstep recipe`: the tricks there are, what a recipe says, and everything that is wrong with it at once."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli.show import AsJson, note, print_json, print_rows, working
from fewstep.errors import RecipeError

if TYPE_CHECKING:
    from fewstep.techniques.base import Technique

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="See and check recipes: which tricks to use, with which settings.",
)
File = Annotated[Path, typer.Argument(help="A recipe: a YAML or JSON file.", metavar="FILE")]


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List the tricks that a recipe may name, with their fields and what those are without a word.

    **Example:** `fewstep recipe list`
    """
    with working():
        from fewstep.techniques import TECHNIQUES

        rows = [{"trick": name, **_about(kind), "fields": _defaults(kind)} for name, kind in TECHNIQUES.items()]
    print_rows(rows, as_json=as_json)


@app.command()
def show(file: File, as_json: AsJson = False) -> None:
    """Show a recipe's tricks in the order in which they are put on.

    **Example:** `fewstep recipe show examples/fast.yaml`
    """
    with working():
        from fewstep.recipe import Recipe

        recipe = Recipe.load(file)
    if as_json:
        print_json(recipe.to_dict())
        return
    rows = [
        {"trick": technique.name, **_about(type(technique)), "fields": dataclasses.asdict(technique)}
        for technique in recipe.ordered()
    ]
    print_rows(rows, as_json=False)


@app.command()
def check(
    file: File,
    model: Annotated[str, typer.Option("--model", "-m", help="The model that the recipe is for.")] = "zoo:shapes",
    as_json: AsJson = False,
) -> None:
    """Say everything that is wrong with a recipe, for one model on this machine.

    **Example:** `fewstep recipe check examples/fast.yaml --model zoo:shapes`
    """
    with working():
        problems = _problems(file, model)
    if as_json:
        print_json({"recipe": str(file), "model": model, "problems": problems})
        raise typer.Exit(2 if problems else 0)
    if problems:
        raise RecipeError(*problems)
    note(f"{file} fits {model} on this machine.")


def _problems(file: Path, model: str) -> list[str]:
    from fewstep.machine import Machine
    from fewstep.models.load import load
    from fewstep.models.model import Model
    from fewstep.recipe import Recipe

    try:
        recipe = Recipe.load(file)
    except RecipeError as error:
        return list(error.problems)
    return recipe.problems(Model(load(model)), Machine.detect())


def _about(kind: type[Technique]) -> dict[str, Any]:
    first = (kind.__doc__ or "").strip().split("\n\n")[0]
    return {"stage": kind.stage.name.lower(), "claims": sorted(kind.claims), "what": " ".join(first.split())}


def _defaults(kind: type[Technique]) -> dict[str, Any]:
    """Field name -> its default; a field that must be given is said to be."""
    return {
        field.name: "(must be given)" if field.default is dataclasses.MISSING else field.default
        for field in dataclasses.fields(kind)
    }
