"""Calibration files, the run that makes them, and the signature."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fewstep.calibrate.calibration import Calibration, Change
from fewstep.calibrate.run import STRIDES, calibrate, reuse_error
from fewstep.calibrate.signature import Signature, signature
from fewstep.errors import InputError
from fewstep.models.model import Model
from tests.techniques.tiny import GUIDED, PROMPT, pipeline, run, state

CALL = {"prompt": PROMPT, **GUIDED, "num_inference_steps": 6}
SIGNATURE = Signature("abc", "float32", "true_cfg_scale=2.5", "height=64")
ONE = Calibration(SIGNATURE, (Change("transformer", 0, 1.0, 0.5, 0.1, 0.2),), {"runs": 1})


def test_a_file_and_back(tmp_path: Path) -> None:
    ONE.save(tmp_path / "c.json")
    assert Calibration.load(tmp_path / "c.json") == ONE


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v: v.update(format="1"), "format"),
        (lambda v: v.pop("changes"), "whole calibration"),
        (lambda v: v["changes"][0].update(error=-1), "'error'"),
        (lambda v: v["changes"][0].update(signal="x"), "'signal'"),
        (lambda v: v["signature"].pop("weights"), "whole calibration"),
        (lambda v: v["signature"].update(size=64), "'size'"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, change: Any, said: str) -> None:
    path = tmp_path / "c.json"
    ONE.save(path)
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    with pytest.raises(InputError, match=said) as caught:
        Calibration.load(path)
    assert "c.json" in str(caught.value)


def test_a_run_sees_every_pair_of_near_steps_of_every_branch_and_leaves_no_trace() -> None:
    pipe = pipeline()
    before, plain = state(pipe), run(pipe)
    generator = torch.Generator().manual_seed(3)
    made = calibrate(pipe, {**CALL, "generator": generator})
    pairs = sum(min(step, STRIDES) for step in range(6))
    assert [sum(c.branch == branch for c in made.changes) for branch in (0, 1)] == [pairs, pairs]
    assert all(c.sigma_from > c.sigma_to for c in made.changes)
    assert torch.equal(generator.get_state(), torch.Generator().manual_seed(3).get_state())
    assert state(pipe) == before
    assert torch.equal(run(pipe), plain)


def test_more_runs_are_more_changes_and_further_steps_are_larger_errors() -> None:
    pipe = pipeline()
    one, two = calibrate(pipe, CALL), calibrate(pipe, CALL, {**CALL, "prompt": "a small blue square"})
    assert len(two.changes) == 2 * len(one.changes)
    curve = one.curve("transformer")
    assert curve is not None
    assert curve(0.0) <= curve(1.0)
    assert one.curve("unet") is None


def test_reuse_error_by_hand() -> None:
    new = {"a": {"hidden": torch.tensor([1.0, 3.0])}, "b": {"hidden": torch.tensor([2.0])}}
    old = {"a": {"hidden": torch.tensor([1.0, 1.0])}, "b": {"hidden": torch.tensor([1.0])}}
    assert reuse_error(new, old, torch.tensor([4.0])) == pytest.approx((1 + 1) / 4)


class TestSignature:
    def test_it_is_the_same_for_the_same_and_ignores_steps_and_prompt(self) -> None:
        a = signature(Model(pipeline()), CALL)
        b = signature(Model(pipeline()), {**CALL, "num_inference_steps": 50, "prompt": "a ring"})
        assert a == b
        assert a.differences(b) == []

    @pytest.mark.parametrize(
        ("call", "named"), [({"true_cfg_scale": 1.0}, "guidance"), ({"height": 32}, "size"), ({}, "weights")]
    )
    def test_each_part_counts(self, call: dict[str, Any], named: str) -> None:
        pipe = pipeline()
        here = signature(Model(pipe), CALL)
        if not call:
            with torch.no_grad():
                pipe.transformer.x_embedder.bias[0] += 1e-3
        (difference,) = signature(Model(pipe), {**CALL, **call}).differences(here)
        assert difference.startswith(named)

    def test_another_precision_is_named_as_that_and_not_as_other_weights(self) -> None:
        pipe = pipeline()
        here = signature(Model(pipe), CALL)
        pipe.transformer.to(torch.bfloat16)
        (difference,) = signature(Model(pipe), CALL).differences(here)
        assert difference == "precision (bfloat16 instead of float32)"
