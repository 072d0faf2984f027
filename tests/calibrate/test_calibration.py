"""Calibration files, the run that makes them, and the signature."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep.calibrate.calibration import PREDICTION, STRIDES, Calibration, Gain, Trail
from fewstep.calibrate.gram import gram
from fewstep.calibrate.run import calibrate
from fewstep.calibrate.signature import Signature, signature
from fewstep.errors import InputError
from fewstep.models.hooks import wrapped
from fewstep.models.model import Model
from tests.techniques.tiny import GUIDED, PROMPT, pipeline, run, state

CALL = {"prompt": PROMPT, **GUIDED, "num_inference_steps": 6}
SIGNATURE = Signature("abc", "float32", "true_cfg_scale=2.5", "height=64")
ROWS = [torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0]), torch.tensor([0.0, 4.0])]
SIGMAS = (1.0, 0.6, 0.3)


def trail(what: str, rows: list[Tensor] = ROWS, branch: int = 0) -> Trail:
    return Trail.of(what, "transformer", branch, 0, SIGMAS, gram(rows))


ONE = Calibration(SIGNATURE, (trail("signal"),), (Gain(0.5, 2.0),), {"runs": 1})


def test_a_file_and_back(tmp_path: Path) -> None:
    ONE.save(tmp_path / "c.json")
    assert Calibration.load(tmp_path / "c.json") == ONE


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v: v.update(format="1"), "format"),
        (lambda v: v.pop("trails"), "whole calibration"),
        (lambda v: v["trails"][0]["gram"].pop(), "'gram'"),
        (lambda v: v["trails"][0]["gram"].__setitem__(0, "x"), "'gram'"),
        (lambda v: v["trails"][0]["sigmas"].__setitem__(0, None), "'sigmas'"),
        (lambda v: v["gains"][0].update(gain=-1), "'gain'"),
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


class TestTrails:
    def test_changes_and_sizes_are_those_of_the_vectors(self) -> None:
        made = trail("stack")
        assert made.sizes.tolist() == pytest.approx([float(row.square().mean().sqrt()) for row in ROWS])
        for stride in (1, 2):
            expected = [float((b - a).square().mean().sqrt()) for a, b in zip(ROWS, ROWS[stride:], strict=False)]
            assert made.differences(stride).tolist() == pytest.approx(expected)

    def test_the_curve_is_made_of_every_pair_of_near_steps(self) -> None:
        """A signal that moves by 1 of 1, stacks by 2 of 4: the error is one half of the change."""
        ramp = [torch.full((2,), float(k)) for k in (1, 2, 3)]
        made = Calibration(
            SIGNATURE,
            (trail("signal", [torch.ones(2)] * 3), trail("stack", ramp), trail("hidden", [torch.full((2,), 4.0)] * 3)),
        )
        curve = made.curve("transformer")
        assert curve is not None
        assert curve(0.0) == pytest.approx((1 / 4 + 1 / 4 + 2 / 4) / 3)  # no change seen, and errors nevertheless
        assert made.curve("unet") is None

    def test_ratios_are_of_the_sizes_at_other_levels_too(self) -> None:
        made = Calibration(SIGNATURE, (trail("stack", [torch.full((2,), 1 + s) for s in SIGMAS]),))
        assert made.ratios("transformer", [1.0, 0.8, 0.3]) == pytest.approx([1.0, 1.8 / 2.0, 1.3 / 1.8])

    def test_gains_never_rise_towards_the_end(self) -> None:
        gains = (Gain(1.0, 2.0), Gain(0.5, 6.0), Gain(0.2, 1.0))
        assert Calibration(SIGNATURE, (), gains).gains_at([1.0, 0.5, 0.35, 0.0]).tolist() == pytest.approx(
            [6, 6, 3.5, 1]
        )
        assert Calibration(SIGNATURE, ()).gains_at([1.0, 0.0]).tolist() == [1.0, 1.0]


class TestRun:
    def test_it_sees_every_branch_and_leaves_nothing_behind(self) -> None:
        pipe = pipeline()
        before, plain = state(pipe), run(pipe)
        generator = torch.Generator().manual_seed(3)
        made = calibrate(pipe, {**CALL, "generator": generator}, gains=2)
        assert {(one.what, one.branch) for one in made.trails} == {
            ("output", 0), *((what, branch) for what in ("signal", "stack", "hidden") for branch in (0, 1)),
        }  # fmt: skip
        assert len(made.gains) == 2
        assert torch.equal(generator.get_state(), torch.Generator().manual_seed(3).get_state())
        assert state(pipe) == before
        assert "step" not in vars(pipe.scheduler)
        assert torch.equal(run(pipe), plain)

    def test_the_output_is_what_reached_the_scheduler(self) -> None:
        pipe = pipeline()
        seen: list[Tensor] = []
        made = calibrate(pipe, CALL)
        plain = pipe.scheduler.step

        def step(output: Tensor, *args: Any, **kwargs: Any) -> Any:
            seen.append(output.flatten())
            return plain(output, *args, **kwargs)

        pipe.scheduler.step = step
        run(pipe, steps=6, generator=torch.Generator().manual_seed(0))
        (output,) = made.of("output", PREDICTION)
        assert output.sigmas == pytest.approx(pipe.scheduler.sigmas[:-1].tolist())
        assert len(seen) == 6
        sizes = torch.stack(seen).double().square().mean(1).sqrt()
        assert output.sizes[:-1].tolist() == pytest.approx(sizes.tolist(), rel=0.2)  # another noise

    def test_more_runs_are_more_trails(self) -> None:
        pipe = pipeline()
        one, two = calibrate(pipe, CALL), calibrate(pipe, CALL, {**CALL, "prompt": "a small blue square"})
        assert len(two.trails) == 2 * len(one.trails)
        assert {trail.run for trail in two.trails} == {0, 1}
        curve = two.curve("transformer")
        assert curve is not None
        assert curve(0.0) <= curve(1.0)
        assert STRIDES < 6

    def test_a_gain_is_what_one_stale_output_does_to_the_end(self) -> None:
        """On a denoiser that gives a constant a step, whatever it is given, an error stays as large as it was made."""
        pipe = pipeline()

        def blind(forward: Any, *args: Any, hidden_states: Tensor, timestep: Tensor, **kwargs: Any) -> Any:
            return (torch.ones_like(hidden_states) * timestep.flatten()[0] ** 2,)

        with wrapped(pipe.transformer, blind):
            made = calibrate(pipe, CALL, gains=3)
        assert [one.gain for one in made.gains] == pytest.approx([1.0] * 3, rel=1e-3)


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
