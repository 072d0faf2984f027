"""`fewstep recipe`: the tricks there are, what a recipe says, and everything that is wrong with it at once."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli.check import recipe_of
from fewstep.cli.show import RECIPE_HELP, AsJson, note, print_json, print_rows, working
from fewstep.errors import RecipeError

if TYPE_CHECKING:
    from fewstep.techniques.base import Technique

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="See and check recipes: which tricks to use, with which settings.",
)
Source = Annotated[str, typer.Argument(help=RECIPE_HELP, metavar="RECIPE")]


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List the tricks that a recipe may name, with their fields and defaults, and the ready-made recipes.

    **Example:** `fewstep recipe list`
    """
    with working():
        from fewstep.recipe import Recipe
        from fewstep.recipes import RECIPES
        from fewstep.techniques import TECHNIQUES

        tricks = [{"trick": name, **_about(kind), "fields": _defaults(kind)} for name, kind in TECHNIQUES.items()]
        ready = [{"recipe": name, **Recipe.load(name).to_dict()} for name in RECIPES]
    if as_json:
        print_json({"tricks": tricks, "recipes": ready})
        return
    print_rows(tricks, as_json=False, title="Tricks")
    print_rows(ready, as_json=False, title="Ready-made recipes")


@app.command()
def show(recipe: Source, as_json: AsJson = False) -> None:
    """Show a recipe's tricks in the order in which they are put on.

    **Example:** `fewstep recipe show examples/fast.yaml`
    """
    with working():
        plan = recipe_of(recipe)
    if as_json:
        print_json(plan.to_dict())
        return
    rows = [
        {"trick": technique.name, **_about(type(technique)), "fields": dataclasses.asdict(technique)}
        for technique in plan.ordered()
    ]
    print_rows(rows, as_json=False)


@app.command()
def check(
    recipe: Source,
    model: Annotated[str, typer.Option("--model", "-m", help="The model that the recipe is for.")] = "zoo:shapes",
    as_json: AsJson = False,
) -> None:
    """Say everything that is wrong with a recipe, for one model on this machine.

    **Example:** `fewstep recipe check examples/fast.yaml --model zoo:shapes`
    """
    with working():
        problems = _problems(recipe, model)
    if as_json:
        print_json({"recipe": recipe, "model": model, "problems": problems})
        raise typer.Exit(2 if problems else 0)
    if problems:
        raise RecipeError(*problems)
    note(f"{recipe} fits {model} on this machine.")


def _problems(source: str, model: str) -> list[str]:
    from fewstep.checkpoints.load import load
    from fewstep.machine import Machine
    from fewstep.models.model import Model

    try:
        plan = recipe_of(source)
    except RecipeError as error:
        return list(error.problems)
    return plan.problems(Model(load(model)), Machine.detect())


def _about(kind: type[Technique]) -> dict[str, Any]:
    first = (kind.__doc__ or "").strip().split("\n\n")[0]
    return {"stage": kind.stage.name.lower(), "claims": sorted(kind.claims), "what": " ".join(first.split())}


def _defaults(kind: type[Technique]) -> dict[str, Any]:
    """Field name -> its default; a field that must be given is said to be."""
    return {
        field.name: "(must be given)" if field.default is dataclasses.MISSING else field.default
        for field in dataclasses.fields(kind)
    }
