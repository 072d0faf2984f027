"""Real scenes that answer a given prompt: what a perfect model would draw for it, in all its variety."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import numpy as np

from fewstep.errors import InputError
from fewstep.zoo.shapes.scenes import APART, Ask, Relation, Scene, Thing, ThingAsk, holds, sample_scene

TRIES = 20_000  # scenes drawn before a prompt is held to be unanswerable; the rarest take some hundreds


def sample_answer(ask: Ask, rng: np.random.Generator) -> Scene:
    """A scene that answers `ask`, as often as `sample_scene` draws its like in everything that was not asked.

    Sizes and places are drawn until they fit; shapes, colours, fills and the background, on which no other part of a
    scene depends, are then set to what was asked.

    Raises:
        InputError: no scene answers it: too many or too large objects, say.
    """
    for _ in range(TRIES):
        scene = sample_scene(rng)
        if len(scene.things) != len(ask.things):
            continue
        for order in permutations(scene.things):
            if _fits(ask, order):
                things = tuple(_painted(want, thing) for want, thing in zip(ask.things, order, strict=True))
                tone, texture = ask.tone or scene.tone, ask.texture or scene.texture
                return replace(scene, things=things, tone=tone, texture=texture)
    raise InputError(f"No scene was found that answers {ask}.")


def _fits(ask: Ask, things: tuple[Thing, ...]) -> bool:
    sizes = all(want.size in (None, thing.size) for want, thing in zip(ask.things, things, strict=True))
    return sizes and (ask.relation is None or _clearly(ask.relation, things[0], things[1]))


def _clearly(relation: Relation, a: Thing, b: Thing) -> bool:
    """`holds`, and as far from a diagonal as where `describe` names a relation."""
    across, down = abs(a.x - b.x), abs(a.y - b.y)
    return holds(relation, a, b) and max(across, down) >= APART and abs(across - down) >= APART / 3


def _painted(want: ThingAsk, thing: Thing) -> Thing:
    return replace(thing, shape=want.shape, colour=want.colour, fill=want.fill or thing.fill)
