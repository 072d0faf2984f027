"""Each script in examples/ runs from the top to the end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_it_runs(script: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run([sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout


def test_its_recipe_is_one() -> None:
    from fewstep.recipe import Recipe

    assert Recipe.load(ROOT / "examples" / "fast.yaml").techniques


@pytest.mark.parametrize(("file", "methods"), [("distill.yaml", ["kd", "dmd2"]), ("live.yaml", ["causal_kd"])])
def test_its_distillations_are_some(file: str, methods: list[str]) -> None:
    from fewstep.cli.distill import job_of

    job = job_of(str(ROOT / "examples" / file), {})
    assert [rung.method for rung in job.rungs] == methods
