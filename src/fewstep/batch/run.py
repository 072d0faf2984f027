"""A whole batch: a file of prompts in, a folder of pictures or clips out, going on where an earlier run stopped."""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from fewstep.batch.crew import Crew
from fewstep.batch.draw import Drawer, Drawing, cached
from fewstep.batch.engine import NOTHING, work
from fewstep.batch.identity import anchored, contents, identity
from fewstep.batch.jobs import Folder, Source, tasks
from fewstep.batch.prompts import Request
from fewstep.batch.schedule import Task
from fewstep.errors import InputError, bad_value
from fewstep.files import read_json
from fewstep.media import fitting
from fewstep.models.load import INDEX, fetched, resolve
from fewstep.recipe import Recipe, RecipeSource
from fewstep.techniques.parallel.technique import Parallel


@dataclass(frozen=True)
class Report:
    """What came of a batch.

    Attributes:
        folder: of the outputs.
        index: the file that says which line gave which output.
        lines: of the prompts.
        outputs: that they ask for; equal lines ask for one.
        made: in this run.
        there: before it.
        failures: number of a line -> why it could not be made.
        replaced: how many workers died and were replaced.
        seconds: of the whole run.
        rate: outputs a second, once the workers were ready.
        engaged: what the recipe's techniques really did, in one worker.
    """

    folder: Path
    index: Path
    lines: int
    outputs: int
    made: int
    there: int
    failures: Mapping[int, str]
    replaced: int
    seconds: float
    rate: float
    engaged: Mapping[str, Any]


def run(
    requests: Sequence[Request],
    folder: Path | str,
    model: str | Path,
    recipe: RecipeSource = (),
    *,
    crew: Crew | None = None,
    suffix: str | None = None,
    show: bool = True,
) -> Report:
    """Make what is asked for and not there yet. However it ends, what is made stays, and the index says what it is.

    Args:
        requests: as `prompts.read` gives them.
        folder: of the outputs.
        model: `zoo:NAME`, a pipeline folder, or a hub id; a folder must be at the same place on every machine.
        recipe: whatever `Recipe.load` takes.
        crew: who does the work.
        suffix: what the files end in; None: .png, or of clips .webp.
        show: whether there is a bar.

    Raises:
        InputError: no model, a format that does not hold what it makes, or a crew that can't be had.
        RecipeError: the recipe can't be used.
        MachineError: no Ray, a full disk, or no worker is left.
    """
    start, plan = time.perf_counter(), Recipe.load(recipe)
    crew, data = _fitting(crew or Crew(), plan), plan.to_dict()
    drawing = Drawing(_anchored(model), identity(model), anchored(data), _suffix(suffix, model))
    source, place = Source(drawing.identity, contents(data)), Folder(Path(folder), drawing.suffix)
    named = [(request, source.name(request)) for request in requests]
    there = place.there(name for _, name in named)
    outcome = NOTHING

    def deliver(task: Task, output: bytes, facts: Mapping[str, Any]) -> None:
        place.write(task.name, output, {**task.item, "model": str(model), "recipe": data, **facts})

    try:
        todo = tasks(named, there)
        outcome = work(todo, partial(Drawer, drawing), crew, deliver, title="drawing", show=show)
    finally:
        index = place.write_index(named, outcome.failures)
    return Report(
        folder=place.path,
        index=index,
        lines=len(named),
        outputs=len({name for _, name in named}),
        made=outcome.made,
        there=len(there),
        failures={r.line: outcome.failures[name] for r, name in named if name in outcome.failures},
        replaced=outcome.replaced,
        seconds=time.perf_counter() - start,
        rate=outcome.rate,
        engaged=outcome.facts,
    )


def _fitting(crew: Crew, plan: Recipe) -> Crew:
    """The crew as a recipe needs it: one picture a call for a cache, as many processes a worker as share its work."""
    if cached(plan):
        crew = replace(crew, batch=1)
    parallel = next((technique for technique in plan.techniques if isinstance(technique, Parallel)), None)
    if parallel is None:
        if crew.group > 1:
            raise InputError(f"{crew.group} processes a worker have nothing to share: the recipe must have 'parallel'.")
        return crew
    if parallel.auto and crew.group == 1:
        raise InputError(bad_value("group", "a batch", "at least 2 for a recipe with 'parallel: auto'", crew.group))
    return crew if crew.group > 1 else replace(crew, group=parallel.stated.size)


def _anchored(model: str | Path) -> str:
    place = resolve(model)
    zoo = str(model).startswith("zoo:")
    return str(model) if zoo or isinstance(place, str) else str(place.resolve())


def _suffix(given: str | None, model: str | Path) -> str:
    """The ending of the files: the one that was asked for, or the usual one of what the model makes."""
    moves = "num_frames" in _parameters(model)
    suffix = given or (".webp" if moves else ".png")
    if suffix not in fitting(moves):
        names = " or ".join(one.removeprefix(".") for one in fitting(moves))
        raise InputError(bad_value("format", "a batch", f"{names} for {'clips' if moves else 'pictures'}", suffix))
    return suffix


def _parameters(model: str | Path) -> Mapping[str, Any]:
    """Of the pipeline's call, told without loading it; none where diffusers does not have its class."""
    import diffusers

    place = resolve(model)
    index = place / INDEX if isinstance(place, Path) else fetched(place, INDEX, {})
    name = read_json(index).get("_class_name") if index else None
    kind = getattr(diffusers, name, None) if isinstance(name, str) else None
    return inspect.signature(kind.__call__).parameters if kind else {}
