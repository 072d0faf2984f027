"""The gate, the branches, and the calibration of TeaCache."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewstep.accelerate import accelerate
from fewstep.calibrate.calibration import Calibration
from fewstep.calibrate.run import calibrate
from fewstep.errors import InputError
from fewstep.techniques import TeaCache
from fewstep.techniques.teacache import COMPUTED, REUSED, gate
from tests.techniques.tiny import ABLE, GUIDED, PROMPT, pipeline, run

STEPS = 8


@given(st.lists(st.floats(0, 1), min_size=1), st.floats(0.01, 2))
def test_the_gate_never_lets_the_error_reach_the_threshold(forecasts: list[float], threshold: float) -> None:
    accumulated = since = 0.0
    for forecast in forecasts:
        verdict = gate(accumulated, forecast, threshold, must_compute=False)
        since = since + forecast if verdict.reuse else 0.0
        assert since < threshold
        accumulated = verdict.accumulated


def test_the_gate_computes_when_it_must_or_does_not_know() -> None:
    assert not gate(0.0, 0.0, 1.0, must_compute=True).reuse
    assert not gate(0.0, math.nan, 1.0, must_compute=False).reuse
    assert not gate(0.0, math.inf, 1.0, must_compute=False).reuse
    assert not gate(0.0, 0.0, 0.0, must_compute=False).reuse


def test_the_ends_are_computed_and_the_middle_reused_in_every_branch() -> None:
    fast = accelerate(pipeline(), TeaCache(threshold=9.0), ABLE)
    run(fast, steps=STEPS)
    pictures = fast.engaged[0].facts["last_request"]
    assert len(pictures) == 2  # guided: two branches
    assert set(pictures.values()) == {COMPUTED + REUSED * (STEPS - 2) + COMPUTED}
    assert fast.engaged[0].facts["steps_reused"] == 2 * (STEPS - 2)


def test_guidance_off_is_one_branch_although_another_call_had_two() -> None:
    fast = accelerate(pipeline(), TeaCache(threshold=9.0), ABLE)
    run(fast, steps=STEPS)
    run(fast, steps=STEPS, negative_prompt=None, true_cfg_scale=1.0)
    assert list(fast.engaged[0].facts["last_request"].values()) == [COMPUTED + REUSED * (STEPS - 2) + COMPUTED]


def test_a_negative_prompt_equal_to_the_prompt_stays_a_branch_of_its_own() -> None:
    fast = accelerate(pipeline(), TeaCache(threshold=9.0), ABLE)
    run(fast, steps=STEPS, negative_prompt=PROMPT)
    assert len(fast.engaged[0].facts["last_request"]) == 2


def test_reuse_with_exact_residuals_is_exact() -> None:
    """Where the residual does not change from step to step, reusing it changes nothing: the oracle for the plumbing."""
    pipe = pipeline()
    with torch.no_grad():  # blocks that add nothing: every gate is zero
        for name, parameter in pipe.transformer.named_parameters():
            if "blocks" in name and "norm" in name and "linear" in name:
                parameter.zero_()
    plain = run(pipe, steps=STEPS)
    fast = accelerate(pipe, TeaCache(threshold=1.0), ABLE)
    assert torch.equal(run(fast, steps=STEPS), plain)
    assert fast.engaged[0].facts["steps_reused"] > 0


def test_threshold_zero_computes_everything_and_warns() -> None:
    pipe = pipeline()
    plain = run(pipe)
    fast = accelerate(pipe, TeaCache(threshold=0.0), ABLE)
    with pytest.warns(RuntimeWarning, match="reused no step"):
        assert torch.equal(run(fast), plain)


def test_nothing_is_carried_from_one_request_to_the_next() -> None:
    fast = accelerate(pipeline(), TeaCache(threshold=9.0), ABLE)
    first = run(fast, steps=STEPS)
    fast("a small blue square", **{**GUIDED, "num_inference_steps": 5})
    assert torch.equal(run(fast, steps=STEPS), first)


def test_a_request_that_bypasses_the_accelerated_call_is_noticed() -> None:
    fast = accelerate(pipeline(), TeaCache(threshold=9.0), ABLE)
    first = run(fast, steps=STEPS)
    assert torch.equal(run(fast.pipe, steps=STEPS), first)
    assert torch.equal(run(fast.pipe, steps=STEPS), first)


def test_the_first_call_writes_the_calibration_and_leaves_the_generator_alone(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    fast = accelerate(pipeline(), TeaCache(threshold=9.0, calibration=str(path)), ABLE)
    first = run(fast, steps=STEPS)
    assert Calibration.load(path).changes
    assert torch.equal(run(fast, steps=STEPS), first)


def test_a_calibration_serves_another_number_of_steps(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    pipe = pipeline()
    calibrate(pipe, {"prompt": PROMPT, **GUIDED, "num_inference_steps": 4}).save(path)
    fast = accelerate(pipe, TeaCache(threshold=9.0, calibration=str(path)), ABLE)
    run(fast, steps=STEPS)
    assert fast.engaged[0].facts["calibration"] == "fits"
    assert fast.engaged[0].facts["steps_reused"] > 0


@pytest.mark.parametrize(
    ("call", "named"),
    [({"true_cfg_scale": 4.0}, "true_cfg_scale=4.0"), ({"height": 32, "width": 32}, "height=32"), ({}, "weights")],
)
def test_a_calibration_of_something_else_is_refused_loudly(tmp_path: Path, call: dict[str, float], named: str) -> None:
    path = tmp_path / "calibration.json"
    calibrate(pipeline(), {"prompt": PROMPT, **GUIDED, "num_inference_steps": 4}).save(path)
    pipe = pipeline(seed=0 if call else 1)
    plain = run(pipe, **call)
    fast = accelerate(pipe, TeaCache(threshold=9.0, calibration=str(path)), ABLE)
    with pytest.warns(RuntimeWarning, match="made on something else") as caught:
        assert torch.equal(run(fast, **call), plain)
    assert named in str(caught[0].message)


def test_a_damaged_calibration_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    path.write_text('{"format": "something else"}')
    from fewstep.models.model import Model

    (problem,) = TeaCache(calibration=str(path)).problems(Model(pipeline()), ABLE)
    assert "calibration" in problem


@pytest.mark.parametrize("threshold", [-1, math.nan, math.inf, "high", True])
def test_bad_thresholds(threshold: object) -> None:
    with pytest.raises(InputError, match="'threshold' of TeaCache"):
        TeaCache(threshold=threshold)  # type: ignore[arg-type]


def test_quiet_when_all_is_well() -> None:
    fast = accelerate(pipeline(), TeaCache(threshold=9.0), ABLE)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        run(fast, steps=STEPS)
