"""Scenes drawn for a prompt: they answer it, and vary in all else."""

from __future__ import annotations

import numpy as np
import pytest

from fewstep.errors import InputError
from fewstep.zoo.shapes.answering import sample_answer
from fewstep.zoo.shapes.oracle import Reading, answers
from fewstep.zoo.shapes.scenes import Ask, ThingAsk, sample_prompt


@pytest.mark.parametrize("seed", range(30))
def test_the_scene_answers_the_prompt(seed: int) -> None:
    rng = np.random.default_rng(seed)
    _, ask = sample_prompt(rng)
    scene = sample_answer(ask, rng)
    assert answers(ask, Reading(scene.things, scene.tone, scene.texture))
    assert ask.texture in (None, scene.texture)


def test_what_was_not_asked_varies() -> None:
    ask = Ask((ThingAsk("ring", "red"), ThingAsk("circle", "blue")), "above")
    scenes = [sample_answer(ask, np.random.default_rng(seed)) for seed in range(40)]
    assert {scene.tone for scene in scenes} == {"dark", "grey", "brown", "teal"}
    assert {scene.things[0].size for scene in scenes} == {"small", "large"}
    assert {scene.things[0].fill for scene in scenes} == {"solid", "striped", "checked"}
    assert np.std([scene.things[0].x for scene in scenes]) > 5


def test_a_prompt_that_no_scene_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fewstep.zoo.shapes.answering.TRIES", 20)
    with pytest.raises(InputError, match="No scene"):
        sample_answer(Ask((ThingAsk("ring", "red"),) * 5), np.random.default_rng(0))
