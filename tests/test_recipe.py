"""Recipes from files, lists and names, and all that can be wrong in them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.errors import InputError, RecipeError
from fewstep.models.model import Model
from fewstep.recipe import Recipe
from fewstep.recipes import RECIPES
from fewstep.techniques import Cache, Compile, FewStep, Parallel, Precision, Quantize
from tests.techniques.tiny import ABLE, BARE, pipeline

ALL = Recipe(
    (Compile(dynamic=True), Cache(threshold=0.25), Quantize(skip=("a", "b")), FewStep("zoo:x"), Precision("float16"))
)


@pytest.mark.parametrize("suffix", [".yaml", ".yml", ".json"])
def test_a_file_and_back(tmp_path: Path, suffix: str) -> None:
    ALL.save(tmp_path / f"r{suffix}")
    assert Recipe.load(tmp_path / f"r{suffix}") == ALL
    assert Recipe.load(str(tmp_path / f"r{suffix}")) == ALL


@given(st.floats(0, 10, exclude_min=True), st.integers(1, 4096), st.lists(st.text(), max_size=3))
def test_a_dict_and_back(threshold: float, least: int, skip: list[str]) -> None:
    recipe = Recipe((Cache(threshold=threshold), Quantize(min_features=least, skip=tuple(skip))))
    assert Recipe.load(recipe.to_dict()) == recipe


def test_the_form_that_people_write() -> None:
    text = ["compile", {"few_step": {"student": "zoo:x"}}, {"quantize": None}, Precision()]
    assert Recipe.load(text).techniques == (Compile(), FewStep("zoo:x"), Quantize(), Precision())
    assert Recipe.load({"techniques": text}) == Recipe.load(text)
    named = {"compile": None, "few_step": {"student": "zoo:x"}, "parallel": "auto"}
    assert Recipe.load({"techniques": named}).techniques == (Compile(), FewStep("zoo:x"), Parallel(auto=True))
    assert Recipe.load("compile") == Recipe.load(Compile()) == Recipe((Compile(),))


def test_order_comes_from_the_stage_and_then_from_the_registry() -> None:
    names = ["few_step", "precision", "quantize", "cache", "compile"]
    assert [t.name for t in ALL.ordered()] == names
    assert [t.name for t in Recipe(ALL.techniques[::-1]).ordered()] == names


def test_all_problems_of_a_recipe_come_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.load(["compil", {"cache": {"treshold": 1}}, {"quantize": {"scheme": "int3", "skip": 4}}, 7])
    unknown, field, value, shape = caught.value.problems
    assert unknown == "There is no technique 'compil': did you mean 'compile'?"
    assert field == "The technique 'cache' has no field 'treshold': did you mean 'threshold'?"
    assert "'scheme' of Quantize" in value
    assert "'skip' of Quantize" in value
    assert "Got 7" in shape


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"techniqes": []}, "one key, 'techniques'"),
        ({}, "one key, 'techniques'"),
        ({"techniques": "compile"}, "must be a list"),
        ({"techniques": 3}, "must be a list"),
        ("qualty", "did you mean 'quality'?"),
        ([{"compile": {}, "precision": {}}], "one name with its fields"),
    ],
)
def test_what_is_no_recipe(source: Any, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.load(source)
    assert said in str(caught.value)


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file"):
        Recipe.load(tmp_path / "nowhere.yaml")
    (tmp_path / "torn.yaml").write_text("techniques: {")
    with pytest.raises(InputError, match="must be a YAML file"):
        Recipe.load(tmp_path / "torn.yaml")
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(RecipeError, match=r"must be a list"):
        Recipe.load(tmp_path / "empty.yaml")
    with pytest.raises(InputError, match="saved as"):
        ALL.save(tmp_path / "r.txt")


def test_one_technique_twice_is_a_conflict() -> None:
    (conflict,) = Recipe((Cache(threshold=0.1), Cache(threshold=0.2))).conflicts()
    assert conflict == "cache is in the recipe twice: leave one out."


def test_problems_of_all_techniques_come_at_once_and_each_once() -> None:
    recipe = Recipe((Compile(), Precision(), Quantize(), Quantize(skip=("x",))))
    problems = recipe.problems(Model(pipeline()), BARE)
    for feature in ("compile", "bf16", "int8"):
        assert problems.count(BARE.missing(feature)) == 1
    assert any("twice" in problem for problem in problems)


@pytest.mark.parametrize("name", RECIPES)
def test_ready_made_recipes_load_and_do_not_conflict(name: str) -> None:
    assert Recipe.load(name).techniques
    assert Recipe.load(name).conflicts() == []


def test_a_dynamic_scheme_wants_compilation_on_a_gpu() -> None:
    """There its many small kernels take longer than they save."""
    gpu = replace(ABLE, device="cuda")
    (sentence,) = Recipe.load(["precision", {"quantize": {"scheme": "fp8-dynamic"}}]).wants(gpu)
    assert sentence.startswith("fp8-dynamic converts")
    assert "put compile into the recipe" in sentence
    for enough in (["quantize", "compile"], [{"quantize": {"scheme": "fp8-weight-only"}}], ["precision"]):
        assert Recipe.load(enough).wants(gpu) == []
    assert Recipe.load("quantize").wants(ABLE) == []
