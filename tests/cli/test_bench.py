"""A recipe measured on a pipeline folder."""

from __future__ import annotations

import json
from pathlib import Path

from fewstep.machine import Machine
from tests.cli.conftest import Fewstep


def test_a_recipe_is_measured_and_reported(
    fewstep: Fewstep, model: Path, tmp_path: Path, able_machine: Machine
) -> None:
    (tmp_path / "half.yaml").write_text("techniques: [precision]")
    line = ["bench", model, "--recipe", tmp_path / "half.yaml", "--prompt", "a red ring", "--batch", 1, "--rounds", 1]
    ran = fewstep(*line, "--out", tmp_path / "report", "--json")
    assert ran.code == 0, ran.err
    names = [row["name"] for row in ran.json["rows"]]
    assert names[0] == "baseline"
    assert "precision" in names
    assert json.loads((tmp_path / "report" / "report.json").read_text()) == ran.json
    assert (tmp_path / "report" / "report.html").stat().st_size > 1000


def test_something_must_be_drawn(fewstep: Fewstep, model: Path) -> None:
    assert "--prompt" in fewstep("bench", model, "--recipe", "exact").refusal


def test_counts_must_be_counts(fewstep: Fewstep, model: Path) -> None:
    for option in ("--steps", "--batch", "--rounds"):
        line = ["bench", model, "--recipe", "exact", "--prompt", "a red ring", option, 0]
        assert f"'{option}'" in fewstep(*line).refusal
