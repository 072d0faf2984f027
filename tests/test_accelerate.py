"""Putting recipes on and taking them off."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import pytest
import torch

import fewstep.techniques as techniques
from fewstep.accelerate import accelerate
from fewstep.errors import InputError, RecipeError
from fewstep.machine import Machine
from fewstep.models.model import Model
from fewstep.techniques import Engaged, Precision, Quantize
from tests.techniques.tiny import ABLE, BARE, GUIDED, PROMPT, pipeline, run, state


def test_an_empty_recipe_changes_nothing() -> None:
    pipe = pipeline()
    before, plain = state(pipe), run(pipe)
    fast = accelerate(pipe, [], ABLE)
    assert torch.equal(run(fast), plain)
    assert fast.engaged == []
    fast.remove()
    assert state(pipe) == before


def test_an_empty_recipe_costs_less_than_a_hundredth_of_a_denoiser_call() -> None:
    """The whole of what an accelerated call adds, against one call of even this denoiser, the smallest."""
    pipe = pipeline()
    fast = accelerate(pipe, [], ABLE)
    fast.pipe = Instant(pipe)
    call = {**GUIDED, "num_inference_steps": 50}

    def seconds(work: Callable[[], Any]) -> float:
        start = time.perf_counter()
        for _ in range(100):
            work()
        return (time.perf_counter() - start) / 100

    added = median(seconds(lambda: fast(PROMPT, **call)) for _ in range(5))
    x, text, pooled = torch.randn(16, 64, 48), torch.randn(16, 24, 128), torch.randn(16, 64)
    ids = {"img_ids": torch.zeros(64, 3), "txt_ids": torch.zeros(24, 3)}
    start = time.perf_counter()
    with torch.no_grad():
        for _ in range(3):
            pipe.transformer(x, text, pooled, torch.full((16,), 0.5), **ids)
    denoiser = (time.perf_counter() - start) / 3
    per_denoiser_call = added / (2 * call["num_inference_steps"])
    assert per_denoiser_call < 0.01 * denoiser


class Instant:
    """Answers a call at once, with nothing."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        return None


def test_everything_else_is_the_pipelines_own() -> None:
    pipe = pipeline()
    fast = accelerate(pipe, [], ABLE)
    assert fast.scheduler is pipe.scheduler
    assert fast.encode_prompt.__self__ is pipe
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = fast.no_such_thing
    assert copy.copy(fast).pipe is pipe


def test_all_problems_are_raised_at_once_and_nothing_was_touched() -> None:
    pipe = pipeline()
    before = state(pipe)
    with pytest.raises(RecipeError) as caught:
        accelerate(pipe, ["compile", "precision", {"quantize": {"min_features": 32}}], BARE)
    assert set(caught.value.problems) == {BARE.missing(feature) for feature in ("compile", "bf16", "int8")}
    assert state(pipe) == before


def test_a_failure_half_way_undoes_what_was_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(self: Quantize, model: Model, machine: Machine) -> Engaged:
        raise MemoryError("no room")

    monkeypatch.setattr(techniques.Quantize, "apply", failing)
    pipe = pipeline()
    before, plain = state(pipe), run(pipe)
    with pytest.raises(MemoryError, match="no room"):
        accelerate(pipe, [Precision(), Quantize(min_features=32)], ABLE)
    assert state(pipe) == before
    assert torch.equal(run(pipe), plain)


def test_remove_may_be_called_twice_and_the_pipeline_accelerated_again() -> None:
    pipe = pipeline()
    plain = run(pipe)
    fast = accelerate(pipe, Precision(), ABLE)
    first = run(fast)
    fast.remove()
    fast.remove()
    assert torch.equal(run(fast), plain)
    assert torch.equal(run(accelerate(pipe, Precision(), ABLE)), first)


@pytest.mark.parametrize("thing", [None, "zoo:shapes", torch.nn.Linear(2, 2), lambda: 0])
def test_what_is_no_pipeline(thing: Any) -> None:
    with pytest.raises(InputError, match="needs a diffusers pipeline"):
        accelerate(thing, [], ABLE)


def test_accelerating_twice_is_refused() -> None:
    fast = accelerate(pipeline(), Precision(), ABLE)
    with pytest.raises(InputError, match=r"call remove\(\) first"):
        accelerate(fast, [], ABLE)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        ({"prompt": 3}, "'prompt'"),
        ({"prompt": ["a ring", 3]}, "'prompt'"),
        ({"prompt": "a ring", "negative_prompt": b"x"}, "'negative_prompt'"),
        ({"prompt": "a ring", "num_inference_steps": 0}, "'num_inference_steps'"),
        ({"prompt": "a ring", "num_inference_steps": 2.5}, "'num_inference_steps'"),
    ],
)
def test_bad_calls_are_one_sentence(call: dict[str, Any], named: str) -> None:
    fast = accelerate(pipeline(), [], ABLE)
    with pytest.raises(InputError, match=named):
        fast(**call)


def test_too_many_arguments_are_one_sentence() -> None:
    with pytest.raises(InputError, match="can't be called so"):
        accelerate(pipeline(), [], ABLE)(*range(100))
