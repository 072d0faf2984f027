"""`fewstep doctor`: what this machine can do, which tricks fit it and a model, and why not the others."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli.show import AsJson, cell, note, print_facts, print_json, print_rows, working

if TYPE_CHECKING:
    from fewstep.machine import Machine
    from fewstep.models.model import Model
# The schemes whose products are of few bits: one for each sort of hardware.
SCHEMES = ("int8-dynamic", "fp8-dynamic", "mxfp8", "nvfp4")


def doctor(
    model: Annotated[str, typer.Option("--model", "-m", help="The model to ask the tricks about.")] = "zoo:shapes",
    as_json: AsJson = False,
) -> None:
    """Say what this machine can do, which tricks fit it, and why not the others.

    **Example:** `fewstep doctor --model zoo:shapes`
    """
    with working():
        from fewstep.machine import Machine, versions

        machine = Machine.detect()
        facts = {**machine_facts(machine), "versions": versions()}
        tricks = _fitting(model, machine)
    if as_json:
        print_json({"machine": facts, "model": model, "tricks": tricks})
        return
    print_facts(facts, as_json=False, title="This machine")
    print_rows(tricks, as_json=False, title=f"Tricks for {model}")
    note("'fits' means that the trick can be used here; what it gains, 'fewstep bench' measures.")


def machine_facts(machine: Machine) -> dict[str, Any]:
    """What `machine` is, what it has, and a sentence for each feature that it lacks."""
    from fewstep.machine import FEATURES

    return {
        "device": machine.device,
        "name": machine.name,
        "cores": machine.cores,
        "memory_gb": machine.memory_gb,
        "free_disk_gb": round(shutil.disk_usage(Path.cwd()).free / 1e9, 1),
        "features": sorted(machine.features),
        "missing": {feature: why for feature in FEATURES if (why := machine.missing(feature))},
    }


def _fitting(source: str, machine: Machine) -> list[dict[str, Any]]:
    from fewstep.checkpoints.load import load
    from fewstep.models.model import Model
    from fewstep.techniques import TECHNIQUES

    model, settings = Model(load(source)), _settings()
    return [fit(name, setting, model, machine) for name in TECHNIQUES for setting in settings.get(name, [{}])]


def _settings() -> dict[str, list[dict[str, Any]]]:
    """What is tried of a trick that needs some setting or has several kinds; the others are tried as they are."""
    from fewstep.zoo.registry import NAMES, info

    return {
        "few_step": [{"student": f"zoo:{name}"} for name in NAMES if info(name).teacher is not None],
        "quantize": [{"scheme": name} for name in SCHEMES],
    }


def fit(name: str, setting: dict[str, Any], model: Model, machine: Machine) -> dict[str, Any]:
    """One row: whether the trick with that setting fits, and the sentences that say why not."""
    from fewstep.errors import FewstepError
    from fewstep.recipe import Recipe

    try:
        problems = Recipe.load([{name: setting}]).problems(model, machine)
    except FewstepError as error:
        problems = [str(error)]
    return {"trick": name, "setting": cell(setting), "fits": not problems, "why_not": " ".join(problems)}
