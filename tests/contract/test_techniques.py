"""What every technique must do, and every pair of them. A new technique needs one entry in `EXAMPLES`."""

from __future__ import annotations

import dataclasses
import warnings
from contextlib import nullcontext
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch

from fewstep.accelerate import accelerate
from fewstep.errors import FewstepError, RecipeError
from fewstep.models.model import Model
from fewstep.recipe import Recipe
from fewstep.techniques import (
    TECHNIQUES,
    Cache,
    Compile,
    FewStep,
    Host,
    Parallel,
    Precision,
    Quantize,
    Regions,
    Technique,
)
from fewstep.techniques.linears.int8 import has_amx
from fewstep.techniques.parallel.processes import joined
from tests.distill.processes import start
from tests.techniques.tiny import ABLE, BARE, distance, no_codegen, pipeline, run, state, student_folder

STEPS = 5
# What shows that a technique engaged, and how far its latents may be from the baseline's (mean relative error).
COUNTER = {
    "few_step": "modules",
    "precision": "components",
    "quantize": "layers_quantized",
    "parallel": "processes",
    "regions": "steps_regional",
    "cache": "steps_reused",
    "compile": "graphs",
    "host": "answered",
}
BOUND = {
    "few_step": 1e-6,
    "precision": 0.05,
    "quantize": 0.02,
    "parallel": 1e-5,
    "regions": 0.1,
    "cache": 0.2,
    "compile": 1e-5,
    "host": 0.0,
}


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Technique]:
    """One of each. The student has the pipeline's own weights, so that its output can be foretold."""
    student = student_folder(tmp_path_factory.mktemp("student") / "pipe", pipe=pipeline(num_single_layers=1))
    return {
        "few_step": FewStep(str(student)),
        "precision": Precision(),
        "quantize": Quantize(min_features=32),
        "parallel": Parallel(ulysses=2),
        "regions": Regions(warmup=0),
        "cache": Cache(target_speedup=1.25),  # leaves steps for the regions
        "compile": Compile(),
        "host": Host(),
    }


def call(pipe: Any) -> torch.Tensor:
    with no_codegen(), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return run(pipe, steps=STEPS)


IN_ONE = [name for name in TECHNIQUES if name != "parallel"]  # process; it is held to the same in two


@pytest.mark.parametrize("name", IN_ONE)
class TestEach:
    def test_it_is_a_frozen_value(self, name: str, examples: dict[str, Technique]) -> None:
        technique = examples[name]
        assert technique == dataclasses.replace(technique)
        assert hash(technique) == hash(dataclasses.replace(technique))
        for field in dataclasses.fields(technique):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(technique, field.name, None)
        assert type(technique).claims

    def test_problems_change_nothing(self, name: str, examples: dict[str, Technique]) -> None:
        pipe = pipeline(num_single_layers=1)
        before = state(pipe)
        assert examples[name].problems(Model(pipe), ABLE) == []
        examples[name].problems(Model(pipe), BARE)
        assert state(pipe) == before

    def test_it_engages_and_stays_near_and_comes_off_to_the_bit(
        self, name: str, examples: dict[str, Technique]
    ) -> None:
        pipe = pipeline(num_single_layers=1)
        before, plain = state(pipe), run(pipe, steps=STEPS)
        fast = accelerate(pipe, examples[name], ABLE)
        output = call(fast)
        assert output.isfinite().all()
        assert distance(output, plain) <= BOUND[name]
        assert torch.equal(call(fast), output)
        assert fast.engaged[0].name == name
        assert fast.engaged[0].facts[COUNTER[name]]
        fast.remove()
        assert state(pipe) == before
        assert torch.equal(run(pipe, steps=STEPS), plain)

    def test_a_wrong_machine_gets_sentences(self, name: str, examples: dict[str, Technique]) -> None:
        problems = examples[name].problems(Model(pipeline()), BARE)
        assert all(problem.endswith(".") and "\n" not in problem for problem in problems)
        if name in ("precision", "quantize", "compile"):
            assert problems

    def test_a_recipe_file_says_it_all(self, name: str, examples: dict[str, Technique], tmp_path: Path) -> None:
        for suffix in (".yaml", ".json"):
            Recipe((examples[name],)).save(tmp_path / f"recipe{suffix}")
            assert Recipe.load(tmp_path / f"recipe{suffix}").techniques == (examples[name],)


@pytest.mark.parametrize(("a", "b"), list(combinations(IN_ONE, 2)))
def test_a_pair_conflicts_or_works_in_either_order(a: str, b: str, examples: dict[str, Technique]) -> None:
    pair = (examples[a], examples[b])
    pipe = pipeline(num_single_layers=1)
    before, plain = state(pipe), run(pipe, steps=STEPS)
    if Recipe(pair).conflicts():
        with pytest.raises(RecipeError, match="can't be used together"):
            accelerate(pipe, pair, ABLE)
        assert state(pipe) == before
        return
    outputs = []
    for techniques in (pair, pair[::-1]):
        fast = accelerate(pipe, techniques, ABLE)
        outputs.append(call(fast))
        assert all(one.facts[COUNTER[one.name]] for one in fast.engaged)
        fast.remove()
        assert state(pipe) == before
    assert torch.equal(*outputs)
    assert distance(outputs[0], plain) <= 1.5 * (BOUND[a] + BOUND[b])
    assert torch.equal(run(pipe, steps=STEPS), plain)


def test_all_together(examples: dict[str, Technique]) -> None:
    pipe = pipeline(num_single_layers=1)
    before, plain = state(pipe), run(pipe, steps=STEPS)
    fast = accelerate(pipe, tuple(examples[name] for name in IN_ONE), ABLE)
    assert [one.name for one in fast.engaged] == IN_ONE
    assert distance(call(fast), plain) <= sum(BOUND.values())
    fast.remove()
    assert state(pipe) == before
    assert torch.equal(run(pipe, steps=STEPS), plain)


def test_parallel_does_all_of_it_in_two_processes(examples: dict[str, Technique], tmp_path: Path) -> None:
    def work(rank: int) -> None:
        own = tmp_path / str(rank)
        own.mkdir()
        with joined():
            each = TestEach()
            each.test_it_is_a_frozen_value("parallel", examples)
            each.test_problems_change_nothing("parallel", examples)
            each.test_it_engages_and_stays_near_and_comes_off_to_the_bit("parallel", examples)
            each.test_a_wrong_machine_gets_sentences("parallel", examples)
            each.test_a_recipe_file_says_it_all("parallel", examples, own)
            for name in IN_ONE:
                # Without AMX INT8 has one scale for all tokens, which no process alone can know.
                refused = name == "quantize" and not has_amx()
                with pytest.raises(FewstepError, match="can't be spread") if refused else nullcontext():
                    test_a_pair_conflicts_or_works_in_either_order(name, "parallel", examples)

    start(work, 2)
