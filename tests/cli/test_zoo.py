"""The zoo from the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Fewstep


def test_the_models_are_listed(fewstep: Fewstep) -> None:
    names = [row["name"] for row in fewstep("zoo", "list", "--json").json]
    assert "shapes" in names
    table = fewstep("zoo", "list").out
    assert all(name in table for name in names)


def test_a_score_has_the_three_figures_and_a_folder_of_the_same_model_has_the_same(
    fewstep: Fewstep, tmp_path: Path
) -> None:
    line = ["--steps", 1, "--prompts", 4, "--json"]
    score = fewstep("zoo", "eval", "shapes", *line).json
    assert 0 <= score["prompt_accuracy"] <= 1
    assert score["frechet"] > 0
    assert score["diversity"] >= 0
    assert (score["name"], score["steps"], score["prompts"]) == ("shapes", 1, 4)
    fewstep("zoo", "export", "shapes", tmp_path / "mine")
    again = fewstep("zoo", "eval", tmp_path / "mine", *line).json
    assert {**again, "seconds": 0} == {**score, "seconds": 0, "name": str(tmp_path / "mine")}
    (tmp_path / "mine" / "fewstep.json").unlink()
    assert "has no fewstep.json" in fewstep("zoo", "eval", tmp_path / "mine", *line).refusal


def test_an_exported_model_is_a_plain_pipeline(fewstep: Fewstep, tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline

    assert fewstep("zoo", "export", "shapes", tmp_path / "shapes").code == 0
    assert type(DiffusionPipeline.from_pretrained(tmp_path / "shapes")).__name__ == "FluxPipeline"


@pytest.mark.parametrize("command", [["eval"], ["export"], ["train", "--out"]])
def test_a_model_that_the_zoo_has_not(fewstep: Fewstep, tmp_path: Path, command: list[str]) -> None:
    place = [] if command == ["eval"] else [tmp_path / "x"]
    line = ["zoo", command[0], "unicorn", *command[1:], *place]
    assert "unicorn" in fewstep(*line).refusal


@pytest.mark.parametrize(("option", "value"), [("--steps", 0), ("--prompts", 1), ("--steps", -3)])
def test_counts_must_be_counts(fewstep: Fewstep, option: str, value: int) -> None:
    assert f"'{option}'" in fewstep("zoo", "eval", "shapes", option, value).refusal


def test_training_takes_the_default_settings_unless_told(
    fewstep: Fewstep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fewstep.zoo.shapes import train

    runs: list[tuple[Any, ...]] = []

    def remember(*given: Any) -> Path:
        runs.append(given)
        return tmp_path / "pipeline"

    monkeypatch.setattr(train, "train", remember)
    assert fewstep("zoo", "train", "shapes", "--out", tmp_path, "--device", "cpu").code == 0
    assert fewstep("zoo", "train", "zoo:shapes", "--out", tmp_path, "--device", "cpu", "--scenes", 8).code == 0
    assert fewstep("zoo", "train", "shapes", "--out", tmp_path, "--device", "cpu", "--start", "zoo:shapes").code == 0
    asked = (train.Settings(), train.Settings(scenes=8), train.Settings(start="zoo:shapes"))
    assert runs == [(tmp_path, settings, "cpu") for settings in asked]


def test_each_model_is_trained_by_its_own_recipe(
    fewstep: Fewstep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fewstep.zoo.moving import train

    runs: list[tuple[Any, ...]] = []
    monkeypatch.setattr(train, "train", lambda *given: runs.append(given) or tmp_path / "pipeline")
    assert fewstep("zoo", "train", "moving-shapes", "--out", tmp_path, "--device", "cpu", "--rate", 0.5).code == 0
    assert runs == [(tmp_path, train.Settings(rate=0.5), "cpu")]


def test_training_needs_a_device_that_is_there(fewstep: Fewstep, tmp_path: Path) -> None:
    assert "no device 'abacus'" in fewstep("zoo", "train", "shapes", "--out", tmp_path, "--device", "abacus").refusal


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "layout"), [("shapes-4step", "ulysses: 2"), ("shapes", "guidance: 2, vae: 2"), ("shapes", "tensor: 2")]
)
def test_two_processes_draw_what_was_asked_as_often_as_one(
    fewstep: Fewstep, tmp_path: Path, model: str, layout: str
) -> None:
    recipe = tmp_path / "two.yaml"
    recipe.write_text(f"techniques:\n  - parallel: {{{layout}}}\n")
    asked = ["zoo", "eval", model, "--steps", "4", "--prompts", "24", "--json"]
    alone = fewstep(*asked).json
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "fewstep", *asked, "--recipe", str(recipe)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    two = json.loads(done.stdout)
    assert two["prompt_accuracy"] == alone["prompt_accuracy"]
    assert two["frechet"] == pytest.approx(alone["frechet"], rel=1e-3)
