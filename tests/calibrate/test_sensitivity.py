"""What each layer does alone, what a budget makes of it, and that the choice is kept."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from fewstep.accelerate import accelerate
from fewstep.calibrate.recorded import largest_inputs, record, spread
from fewstep.calibrate.sensitivity import (
    Budget,
    Candidate,
    Effect,
    Sensitivity,
    choose,
    error_of,
    expected_error,
    measure,
)
from fewstep.calibrate.signature import Signature
from fewstep.errors import InputError
from fewstep.models.model import Model
from fewstep.techniques import Quantize
from tests.techniques.tiny import BARE, GUIDED, PROMPT, as_loaded, pipeline, state

CALL = {"prompt": PROMPT, **GUIDED, "num_inference_steps": 3}
SIGNED = Signature("w", "float32", "", "")
ROUGH = Quantize("int4-weight-only", min_features=64, emulate=True)
pytestmark = pytest.mark.filterwarnings("ignore:Quantize emulates")


def made(*effects: tuple[str, float, int], together: float | None = None) -> Sensitivity:
    found = tuple(Effect(f"transformer.{name}", error, saved) for name, error, saved in effects)
    whole = math.hypot(*(effect.error for effect in found)) if together is None else together
    return Sensitivity(SIGNED, "a", found, {"transformer": whole})


def taken(found: Sensitivity, budget: object, size: int = 1000, hinted: tuple[str, ...] = ()) -> str:
    parsed = Budget.parse(budget)
    assert parsed is not None
    chosen = choose(found, parsed, size, lambda layer: layer.removeprefix("transformer.") in hinted)
    return "".join(choice.layer.removeprefix("transformer.") for choice in chosen if choice.quantized)


def test_budgets() -> None:
    assert Budget.parse(0.02) == Budget(error=0.02)
    assert Budget.parse("60%") == Budget(share=0.6)
    assert Budget.parse("6.5 GB") == Budget(bytes=6.5e9)
    assert [Budget.parse(bad) for bad in (0, -1, math.nan, math.inf, True, "0%", "6.5", "", None)] == [None] * 9


def test_squares_of_errors_add_up_to_the_budget() -> None:
    found = made(("a", 3.0, 100), ("b", 4.0, 100), ("c", 12.0, 100))
    assert taken(found, 2.9) == ""
    assert taken(found, 4.9) == "a"
    assert taken(found, 5.0) == "ab"
    assert taken(found, 13.0) == "abc"


def test_what_is_measured_together_scales_the_sum() -> None:
    found = made(("a", 3.0, 100), ("b", 4.0, 100), together=10.0)
    assert expected_error(found, ["transformer.a"]) == {"transformer": pytest.approx(6.0)}
    assert taken(found, 6.0) == "a"
    assert expected_error(made(("a", 0.0, 1), together=0.0), ["transformer.a"]) == {"transformer": 0.0}


def test_bytes_count_and_hints_break_ties() -> None:
    assert taken(made(("a", 3.0, 1), ("b", 4.0, 1000)), 4.5) == "b"
    assert taken(made(("a", 1.0, 0), ("b", 1.0, -5), ("c", 1.0, 5)), 9.0) == "c"  # what saves nothing stays
    assert taken(made(("a", 3.0, 9), ("b", 3.0, 9)), 3.0) == "a"
    assert taken(made(("a", 3.0, 9), ("b", 3.0, 9)), 3.0, hinted=("a",)) == "b"


def test_a_size_takes_the_cheapest_until_it_is_reached() -> None:
    found = made(("a", 3.0, 200), ("b", 1.0, 200), ("c", 2.0, 200))
    assert taken(found, "80%") == "b"
    assert taken(found, "70%") == "bc"
    assert taken(found, "0.4KB") == "abc"
    with pytest.raises(InputError, match="with every layer quantized"):
        taken(found, "30%")


def test_the_effect_of_a_layer_is_the_relative_change_of_the_output() -> None:
    """Against the definition, with a layer that doubles what the denoiser gives."""
    pipe = pipeline()
    model, before = Model(pipe), state(pipe)
    calls = record(model, CALL)
    assert len(calls) == 2 * 3
    double = nn.Linear(64, pipe.transformer.proj_out.out_features)
    with torch.no_grad():
        double.weight.copy_(2 * pipe.transformer.proj_out.weight)
        double.bias.copy_(2 * pipe.transformer.proj_out.bias)
    same = pipe.transformer.proj_out
    effects, together = measure(
        model, [Candidate("transformer", "proj_out", double, 5), Candidate("transformer", "proj_out", same, 6)], calls
    )
    assert [effect.error for effect in effects] == [pytest.approx(1.0), 0.0]
    assert effects[0].saved == 5
    assert together == {"transformer": 0.0}  # the second stood last
    assert state(pipe) == before


def test_recorded_calls_give_what_they_gave() -> None:
    model = Model(pipeline())
    random = torch.get_rng_state()
    calls = record(model, CALL, kept=2)
    assert torch.equal(torch.get_rng_state(), random)
    assert error_of(model, calls) < 1e-6
    assert spread(list(range(9)), 3) == [0, 4, 8]  # type: ignore[arg-type]
    head = model.pipe.transformer.proj_out
    seen = largest_inputs(model, {"head": head}, calls)["head"]
    assert seen.shape == (64,)
    assert (seen > 0).all()


@pytest.fixture(scope="module")
def sensitivity() -> Sensitivity:
    return replace(ROUGH, budget=0.02).measure(pipeline(), CALL, machine=BARE)


def actual(pipe, before) -> float:
    return error_of(Model(pipe), before)


def test_the_budget_is_kept_on_a_real_trajectory(sensitivity: Sensitivity, tmp_path: Path) -> None:
    path = tmp_path / "sensitivity.json"
    sensitivity.save(path)
    assert Sensitivity.load(path) == sensitivity
    whole = sensitivity.together["transformer"]
    sizes = []
    for budget in (0.3 * whole, 0.7 * whole):
        pipe = pipeline()
        calls = record(Model(pipe), CALL)
        fast = accelerate(pipe, replace(ROUGH, budget=budget, sensitivity=str(path)), BARE)
        facts = fast.engaged[0].facts
        assert facts["expected_error"]["transformer"] <= budget
        assert 0.4 * budget < error_of(Model(pipe), calls) < 1.3 * budget
        assert {c["layer"] for c in facts["choice"] if c["quantized"]}.isdisjoint(facts["keep"])
        assert all(choice["why"] for choice in facts["choice"])
        sizes.append(facts["layers_quantized"])
    assert 0 < sizes[0] < sizes[1] <= len(sensitivity.effects)


def test_measured_layers_beat_the_same_number_at_random(sensitivity: Sensitivity) -> None:
    whole = sensitivity.together["transformer"]
    picked = choose(sensitivity, Budget(error=0.5 * whole), 0, lambda _: False)
    names = [choice.layer for choice in picked if choice.quantized]
    others = [effect.layer for effect in sensitivity.effects][-len(names) :]
    assert expected_error(sensitivity, names)["transformer"] < expected_error(sensitivity, others)["transformer"]


def test_the_choice_written_down_needs_no_calibration(sensitivity: Sensitivity, tmp_path: Path) -> None:
    path = tmp_path / "sensitivity.json"
    sensitivity.save(path)
    technique = replace(ROUGH, budget=0.5 * sensitivity.together["transformer"], sensitivity=str(path))
    pipes = [pipeline(), pipeline()]
    engaged = accelerate(pipes[0], technique, BARE).engaged[0]
    settled = technique.settled(engaged)
    assert (settled.budget, settled.sensitivity) == (None, None)
    accelerate(pipes[1], settled, BARE)
    kinds = [{name: type(part) for name, part in pipe.transformer.named_modules()} for pipe in pipes]
    assert kinds[0] == kinds[1]


def test_a_file_of_something_else_is_refused(sensitivity: Sensitivity, tmp_path: Path) -> None:
    path = tmp_path / "sensitivity.json"
    sensitivity.save(path)
    technique = replace(ROUGH, budget=0.5, sensitivity=str(path))
    with pytest.raises(InputError, match=r"made on something else, weights"):
        accelerate(pipeline(seed=1), technique, BARE)
    with pytest.raises(InputError, match=r"scheme \(transformer nvfp4-weight-only instead of"):
        accelerate(pipeline(), replace(technique, scheme="nvfp4-weight-only"), BARE)
    path.write_text('{"format": "fewstep sensitivity 1"}')
    (problem,) = technique.problems(Model(pipeline()), BARE)
    assert "whole sensitivity" in problem


@pytest.mark.slow
def test_without_a_file_it_is_measured_when_applied_and_saved(tmp_path: Path) -> None:
    path = tmp_path / "new.json"
    pipe = as_loaded(pipeline())
    before = state(pipe)
    fast = accelerate(pipe, replace(ROUGH, budget="70%", sensitivity=str(path)), BARE)
    assert Sensitivity.load(path).effects
    denoiser = sum(p.nbytes for p in pipeline().transformer.parameters())
    facts = fast.engaged[0].facts
    assert facts["bytes_before"] - facts["bytes_after"] >= 0.3 * denoiser
    fast.remove()
    assert state(pipe) == before


def test_a_budget_that_no_layer_fits_is_said(sensitivity: Sensitivity, tmp_path: Path) -> None:
    path = tmp_path / "sensitivity.json"
    sensitivity.save(path)
    with pytest.raises(InputError, match="leaves no layer to quantize"):
        accelerate(pipeline(), replace(ROUGH, budget=1e-9, sensitivity=str(path)), BARE)
