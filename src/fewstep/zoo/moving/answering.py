"""Real scenes that answer a given prompt: what a perfect model would draw for it, in all its variety."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import numpy as np

from fewstep.errors import InputError
from fewstep.zoo.moving.scenes import Ask, Scene, Thing, ThingAsk, sample_scene

TRIES = 20_000  # scenes drawn before a prompt is held to be unanswerable; the rarest take some hundreds


def sample_answer(ask: Ask, rng: np.random.Generator) -> Scene:
    """A scene that answers `ask`, as often as `sample_scene` draws its like in everything that was not asked.

    Directions and speeds are drawn until they fit; shapes and colours, on which no other part of a scene depends, are
    then set to what was asked.

    Raises:
        InputError: no scene answers it: three objects, say.
    """
    for _ in range(TRIES):
        scene = sample_scene(rng)
        if len(scene.things) != len(ask.things):
            continue
        for order in permutations(scene.things):
            if all(_fits(want, thing) for want, thing in zip(ask.things, order, strict=True)):
                painted = (
                    replace(thing, shape=want.shape, colour=want.colour)
                    for want, thing in zip(ask.things, order, strict=True)
                )
                return replace(scene, things=tuple(painted))
    raise InputError(f"No scene was found that answers {ask}.")


def _fits(want: ThingAsk, thing: Thing) -> bool:
    return thing.direction == want.direction and want.speed in (None, thing.speed)
