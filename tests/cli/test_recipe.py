"""Recipes seen and checked from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from fewstep.machine import Machine
from fewstep.recipes import RECIPES
from fewstep.techniques import TECHNIQUES
from tests.cli.conftest import Fewstep

TWO = "techniques: [{quantize: {scheme: fp8-dynamic}}, precision]"


@pytest.fixture
def two(tmp_path: Path) -> Path:
    path = tmp_path / "two.yaml"
    path.write_text(TWO)
    return path


def test_every_trick_and_recipe_is_listed(fewstep: Fewstep) -> None:
    listed = fewstep("recipe", "list", "--json").json
    assert [row["trick"] for row in listed["tricks"]] == list(TECHNIQUES)
    assert all(row["what"] and row["claims"] for row in listed["tricks"])
    assert [row["recipe"] for row in listed["recipes"]] == list(RECIPES)
    table = fewstep("recipe", "list").out
    assert all(name in table for name in [*TECHNIQUES, *RECIPES])


def test_tricks_are_shown_in_the_order_of_applying(fewstep: Fewstep, two: Path) -> None:
    out = fewstep("recipe", "show", two).out
    assert 0 < out.index("precision") < out.index("quantize")


def test_a_recipe_as_json_is_a_recipe(fewstep: Fewstep, two: Path, tmp_path: Path) -> None:
    ran = fewstep("recipe", "show", two, "--json")
    (tmp_path / "again.json").write_text(ran.out)
    assert fewstep("recipe", "show", tmp_path / "again.json", "--json").json == ran.json


def test_a_ready_made_recipe_goes_by_its_name(fewstep: Fewstep) -> None:
    name = next(iter(RECIPES))
    assert fewstep("recipe", "show", name, "--json").json["techniques"]


def test_a_fitting_recipe(fewstep: Fewstep, model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("techniques: []")
    ran = fewstep("recipe", "check", tmp_path / "empty.yaml", "--model", model)
    assert (ran.code, ran.out) == (0, "")
    assert "fits" in ran.err
    assert fewstep("recipe", "check", tmp_path / "empty.yaml", "--model", model, "--json").json["problems"] == []


def test_all_problems_are_said_at_once(fewstep: Fewstep, model: Path, two: Path, bare_machine: Machine) -> None:
    ran = fewstep("recipe", "check", two, "--model", model, "--json")
    assert ran.code == 2
    assert {bare_machine.missing("bf16"), bare_machine.missing("fp8")} <= set(ran.json["problems"])
    plain = fewstep("recipe", "check", two, "--model", model)
    assert plain.code == 2
    assert plain.err.count("error: ") == len(ran.json["problems"])
