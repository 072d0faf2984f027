"""What the demo and `fewstep bench` measure, without running it."""

from __future__ import annotations

import pytest

from fewstep.bench import budget, demo, pipelines
from fewstep.errors import InputError
from fewstep.recipe import Recipe

FEW, CACHE = {"few_step": {"student": "zoo:shapes-4step"}}, {"cache": {"preset": "teacache", "threshold": 0.2}}


def test_the_demo_has_the_rows_that_are_promised() -> None:
    plan = demo.plan()
    names = {candidate.kind: [] for candidate in plan.candidates}
    for candidate in plan.candidates:
        names[candidate.kind].append(candidate.name)
    assert names["baseline"] == ["baseline"]
    assert {"4 steps", "1 step"} <= set(names["steps"])
    assert names["alone"] == ["4-step student", "precision", "quantize", "cache", "compile"]
    assert plan.grows_from in names["alone"]
    assert plan.solver_steps == 4
    assert len(plan.prompts) == len(plan.asks) == budget.BATCH * budget.ROUNDS[1]


def test_its_recipes_can_be_read() -> None:
    plan = demo.plan(rounds=(1, 1))
    recipes = [candidate.recipe for candidate in plan.candidates] + [(trick,) for trick in plan.growth]
    for recipe in [*recipes, *((*techniques, *more) for _, techniques, more in plan.finals)]:
        assert len(Recipe.load(list(recipe)).techniques) == len(recipe)


def test_any_pipeline_is_compared_with_fewer_steps_of_its_own() -> None:
    rows = pipelines.candidates([FEW, CACHE], 28, {"num_inference_steps": 28, "height": 64})
    assert [row.name for row in rows] == [
        "baseline",
        "14 steps",
        "6 steps",
        "4 steps",
        "1 step",
        "few_step",
        "cache",
    ]
    assert rows[1].call == {"num_inference_steps": 14, "height": 64}
    assert rows[5].call == {"height": 64}  # a student brings its own steps
    assert rows[6].call == {"num_inference_steps": 28, "height": 64}


def test_a_short_baseline_has_fewer_rows() -> None:
    assert [row.name for row in pipelines.candidates([], 4, {})] == ["baseline", "2 steps", "1 step"]
    assert [row.name for row in pipelines.candidates([], 1, {})] == ["baseline"]


@pytest.mark.parametrize(("steps", "found"), [(7, 7), (None, 20)])
def test_the_baselines_steps_come_from_the_call_or_the_pipeline(new_toy, steps, found) -> None:
    assert pipelines.baseline_steps(new_toy(), {} if steps is None else {"num_inference_steps": steps}) == found


@pytest.mark.parametrize("steps", [0, 2.5, "many"])
def test_steps_that_are_none_are_refused(new_toy, steps) -> None:
    with pytest.raises(InputError, match="num_inference_steps"):
        pipelines.baseline_steps(new_toy(), {"num_inference_steps": steps})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": ()}, "at least one prompt"),
        ({"prompts": ("a",), "task": "shapes"}, "not both"),
        ({"prompts": ("a",), "batch": 0}, "'batch'"),
        ({"prompts": ("a",), "rounds": 0}, "'rounds'"),
    ],
)
def test_bad_options_are_refused(new_toy, monkeypatch, options, message) -> None:
    monkeypatch.setattr(pipelines, "load", lambda model: new_toy())
    values = {"task": None, "prompts": (), "call": {}, "batch": 1, "rounds": 1, "side_by_side": False}
    with pytest.raises(InputError, match=message):
        pipelines.plan("toy", [], **(values | options))
