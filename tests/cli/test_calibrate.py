"""`fewstep calibrate` on the zoo's model, in few steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fewstep.calibrate.calibration import Calibration
from fewstep.recipe import Recipe

PROMPTS = ("-p", "a red ring", "-p", "a large blue square")


def test_it_writes_a_calibration_and_a_recipe_that_keeps_the_budget(fewstep: Any, tmp_path: Path) -> None:
    file, recipe = tmp_path / "c.json", tmp_path / "r.yaml"
    said = fewstep(
        "calibrate", "zoo:shapes", *PROMPTS, "--steps", "5", "--psnr", "5", "-o", file, "-w", recipe, "--json"
    )
    facts = json.loads(said.out)
    assert Calibration.load(file).gains
    (cache,) = Recipe.load(recipe).techniques
    assert cache.target_speedup == pytest.approx(facts["target_speedup"], abs=1e-3)
    assert cache.calibration == str(file)
    kept = [int(computed) for computed, worst in facts["tried"].items() if worst >= 5]
    assert min(kept) == round(5 / facts["target_speedup"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("-p", "a red ring"), "given at least twice"),
        ((*PROMPTS, "--psnr", "-3"), "'--psnr'"),
        ((*PROMPTS, "--write", "r.yaml"), "there is no --psnr"),
        ((*PROMPTS, "--steps", "0"), "'--steps'"),
        (("-p", " ", "-p", "x"), "at least one word"),
    ],
)
def test_bad_input(fewstep: Any, options: tuple[str, ...], said: str) -> None:
    assert said in fewstep("calibrate", "zoo:shapes", *options).refusal
