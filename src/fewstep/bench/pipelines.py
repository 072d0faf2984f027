"""A waterfall of any pipeline: `fewstep bench MODEL --recipe recipe.yaml`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fewstep.bench.candidates import Candidate, check_prompts, label
from fewstep.bench.publish import publish
from fewstep.bench.report.schema import Report
from fewstep.bench.waterfall import Plan
from fewstep.checkpoints.load import load
from fewstep.errors import InputError, bad_value
from fewstep.models.manifest import manifest_of
from fewstep.recipe import Recipe
from fewstep.zoo.tasks import task as find_task

FEWER = (0.5, 0.2)  # of the baseline's steps, besides 4 and 1
PROMPT_SEED = 2024


def run(
    model: str | Path,
    recipe: Any,
    *,
    out: Path | str = "out/bench",
    task: str | None = None,
    prompts: Sequence[str] = (),
    call: Mapping[str, Any] | None = None,
    batch: int = 4,
    rounds: int = 3,
    side_by_side: bool = False,
    show: bool = True,
) -> Report:
    """Measure a recipe's techniques on a pipeline, each alone and as a growing stack, and write the report to `out`.

    recipe: what `Recipe.load` takes. task: a zoo task, whose prompts and oracle are then used; without one only
    fidelity and time are measured, on `prompts`. call: keyword arguments of every call. batch: prompts a call.
    rounds: calls of each row. side_by_side: keep a copy of the model open for each row, for timings as fair as can
    be; else two at a time.

    Raises:
        FewstepError: the model, recipe, task or prompts can't be used. A row that can't run is skipped, with the
        reason.
    """
    return publish(plan(model, recipe, task=task, prompts=prompts, call=call or {}, batch=batch, rounds=rounds,
                        side_by_side=side_by_side), out, show=show)  # fmt: skip


def plan(
    model: str | Path,
    recipe: Any,
    *,
    task: str | None,
    prompts: Sequence[str],
    call: Mapping[str, Any],
    batch: int,
    rounds: int,
    side_by_side: bool,
) -> Plan:
    """The rows of `run`: the baseline, fewer steps, the best solver at 4, each technique alone, the growing stack."""
    if batch < 1 or rounds < 1:
        raise InputError(bad_value("batch" if batch < 1 else "rounds", "bench", "at least 1", min(batch, rounds)))
    techniques = tuple(Recipe.load(recipe).to_dict()["techniques"])
    steps = baseline_steps(load(model), call)
    texts, asks = _asked(task, prompts, batch * rounds)
    students = [t for t in techniques if label(t) == "few_step"]
    return Plan(
        title=f"{model}, trick by trick",
        model=str(model),
        new_pipe=lambda: load(model),
        candidates=tuple(candidates(techniques, steps, call)),
        prompts=texts,
        asks=asks,
        task=find_task(task) if task else None,
        solver_steps=4 if steps > 4 else None,
        solver_call=dict(call),
        growth=tuple(t for t in techniques if t not in students),
        grows_from="few_step" if students else "baseline",
        batch=batch,
        rounds=(rounds, rounds),
        side_by_side=side_by_side,
    )


def candidates(techniques: Sequence[Any], steps: int, call: Mapping[str, Any]) -> list[Candidate]:
    """The rows that need no growing: the baseline, fewer steps (most first), each technique alone."""
    fewer = sorted({round(steps * part) for part in FEWER} | {4, 1}, reverse=True)
    short = [
        Candidate(f"{n} step{'s' if n > 1 else ''}", "steps", call={**call, "num_inference_steps": n})
        for n in fewer
        if 0 < n < steps
    ]
    free = {key: value for key, value in call.items() if key != "num_inference_steps"}  # a student brings its own
    alone = [
        Candidate(label(t), "alone", recipe=(t,), call=dict(free if label(t) == "few_step" else call))
        for t in techniques
    ]
    return [Candidate("baseline", "baseline", call=dict(call)), *short, *alone]


def baseline_steps(pipe: Any, call: Mapping[str, Any]) -> int:
    """The steps of the baseline: from the call, the manifest, or the signature of the pipeline's call.

    Raises:
        InputError: not a whole number of at least 1, or the pipeline has no steps.
    """
    manifest = manifest_of(pipe)
    parameter = inspect.signature(type(pipe).__call__).parameters.get("num_inference_steps")
    default = parameter.default if parameter is not None else None
    steps = call.get("num_inference_steps", (manifest.call if manifest else {}).get("num_inference_steps", default))
    if not isinstance(steps, int) or steps < 1:
        raise InputError(bad_value("num_inference_steps", type(pipe).__name__, "a whole number of at least 1", steps))
    return steps


def _asked(task: str | None, prompts: Sequence[str], count: int) -> tuple[tuple[str, ...], tuple[Any, ...]]:
    if task is None:
        return check_prompts(prompts), ()
    if prompts:
        raise InputError("Name a task or prompts, not both: a task brings its own prompts, which its oracle can check.")
    asked = find_task(task).prompts(count, PROMPT_SEED)
    return tuple(prompt for prompt, _ in asked), tuple(ask for _, ask in asked)
