"""Scenes drawn for a prompt: they answer it, and vary in all else."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from fewstep.errors import InputError
from fewstep.zoo.moving.answering import sample_answer
from fewstep.zoo.moving.scenes import Ask, ThingAsk, sample_prompt


@pytest.mark.parametrize("seed", range(30))
def test_the_scene_answers_the_prompt(seed: int) -> None:
    rng = np.random.default_rng(seed)
    _, ask = sample_prompt(rng)
    scene = sample_answer(ask, rng)
    assert any(
        all(want.met_by(thing) for want, thing in zip(ask.things, order, strict=True))
        for order in permutations(scene.things)
    )
    assert len(scene.things) == len(ask.things)


def test_what_was_not_asked_varies() -> None:
    ask = Ask((ThingAsk("ring", "red", "left"), ThingAsk("circle", "blue", "up")))
    scenes = [sample_answer(ask, np.random.default_rng(seed)) for seed in range(40)]
    assert {scene.tone for scene in scenes} == {"dark", "grey", "brown", "teal"}
    assert {scene.things[0].speed for scene in scenes} == {"slow", "fast"}
    assert np.std([scene.things[0].y for scene in scenes]) > 5


def test_a_prompt_that_no_scene_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fewstep.zoo.moving.answering.TRIES", 20)
    with pytest.raises(InputError, match="No scene"):
        sample_answer(Ask((ThingAsk("ring", "red", "left"),) * 3), np.random.default_rng(0))
