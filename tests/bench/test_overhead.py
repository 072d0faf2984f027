"""fewstep's own cost is separated from the pipeline's."""

from __future__ import annotations

import pytest

from fewstep.bench.overhead import overhead
from fewstep.zoo.shapes.pipeline import build_pipeline


@pytest.fixture
def pipe():
    made = build_pipeline()
    made.set_progress_bar_config(disable=True)
    return made


def test_an_empty_recipe_costs_less_than_a_hundredth(pipe) -> None:
    call = {"prompt": "a red ring", "height": 64, "width": 64, "max_sequence_length": 24, "num_inference_steps": 2}
    found = overhead(pipe, call, rounds=3)
    assert found.nfe == 2
    assert 0 < found.own < 0.5 * found.plain
    assert found.part == pytest.approx(found.own / 2 / found.denoiser_call)
    assert found.part < 0.01
    assert "forward" not in pipe.transformer.__dict__
