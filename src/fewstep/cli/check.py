"""Checks of what a user typed, the quick ones before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fewstep.errors import InputError, MachineError, RecipeError, bad_value
from fewstep.text import readable

if TYPE_CHECKING:
    from fewstep.recipe import Recipe


def at_least(least: int, value: int | None, option: str, command: str) -> None:
    """Refuse a count below `least`; None (not given) passes.

    Raises:
        InputError: the count is too small.
    """
    if value is not None and value < least:
        raise InputError(bad_value(option, command, f"a whole number of at least {least}", value))


def prompt_text(prompt: str, command: str) -> None:
    """Refuse a prompt that is empty or no readable text (bytes that are no UTF-8, control characters).

    Raises:
        InputError: the prompt is no text.
    """
    if not prompt.strip() or not readable(prompt):
        raise InputError(bad_value("PROMPT", command, "a text of at least one word", prompt))


def device_here(given: str | None) -> str:
    """The device to compute on: the one that was asked for, or the best there is.

    Raises:
        MachineError: this machine has no such device.
    """
    from fewstep.machine import Machine

    best = Machine.detect().device
    if given is not None and given.split(":")[0] not in {"cpu", best}:
        known = " and ".join(sorted({"cpu", best}))
        raise MachineError(f"This machine has no device {given!r}; it has {known}.")
    return given or best


def recipe_of(source: str | None) -> Recipe:
    """The recipe in a file or of a ready-made name; an empty one where none was asked for.

    Raises:
        InputError: no such file, or not YAML or JSON.
        RecipeError: what is wrong in it, each problem with the source before it.
    """
    from fewstep.recipe import Recipe

    if source is None:
        return Recipe()
    try:
        return Recipe.load(source)
    except RecipeError as error:
        raise RecipeError(*(f"{source}: {problem}" for problem in error.problems)) from None


@contextmanager
def sharing(plan: Recipe) -> Iterator[int]:
    """Inside the block the processes that torchrun started share the work as a recipe says; gives this one's rank.

    Raises:
        InputError: there are several, and the recipe shares nothing among them.
        MachineError: fewer GPUs than processes.
    """
    from fewstep.techniques.parallel.processes import joined

    with joined() as (rank, processes):
        if processes > 1 and not any(technique.name == "parallel" for technique in plan.techniques):
            raise InputError(f"{processes} processes have nothing to share: a --recipe must have 'parallel: auto'.")
        yield rank
