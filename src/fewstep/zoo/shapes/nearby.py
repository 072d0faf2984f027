"""A scene that is nearly another: one thing of it is different, and so is what a prompt may say of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from numpy.random import Generator

from fewstep.zoo.english import pick
from fewstep.zoo.shapes.scenes import (
    COLOURS,
    FILLS,
    SHAPES,
    SIZES,
    TONES,
    Kind,
    Scene,
    Thing,
    sample_kind,
    sample_place,
    sample_scene,
)

MOST = 4  # objects of a scene
LONGEST = 23  # words and commas of a caption: what the task's models read, less the mark of its end
Change = Callable[[Scene, Generator], Scene | None]
T = TypeVar("T")


def sample_even(rng: Generator) -> Scene:
    """A scene; there are as many of one object as of two, three and four."""
    count = 1 + int(rng.integers(MOST))
    while len((scene := sample_scene(rng)).things) != count:
        pass
    return scene


def nearby(scene: Scene, rng: Generator) -> Scene:
    """The scene with one change: an object more or less, another colour, shape, fill or size of one, two in each
    other's place, or another tone. What is not changed stays to the pixel."""
    changes, weights = list(CHANGES), list(CHANGES.values())
    while True:
        changed = changes[rng.choice(len(changes), p=weights)](scene, rng)
        if changed is not None:
            return changed


def short(caption: str) -> bool:
    """Whether the caption is read to its end; one that lists four objects may not be."""
    return len(caption.replace(",", " ,").split()) <= LONGEST


def more(scene: Scene, rng: Generator) -> Scene | None:
    """An object more, often of the kind of one that is there."""
    if len(scene.things) == MOST:
        return None
    kind = sample_kind(rng, 2) if rng.random() < 0.4 else _kind(pick(rng, scene.things))
    thing = sample_place(rng, kind, scene.things)
    return None if thing is None else replace(scene, things=(*scene.things, thing))


def less(scene: Scene, rng: Generator) -> Scene | None:
    """An object less."""
    gone = rng.integers(len(scene.things))
    left = tuple(thing for i, thing in enumerate(scene.things) if i != gone)
    return replace(scene, things=left) if left else None


def colour(scene: Scene, rng: Generator) -> Scene:
    """An object of another colour."""
    return _changed(scene, rng, lambda thing: replace(thing, colour=_other(rng, tuple(COLOURS), thing.colour)))


def shape(scene: Scene, rng: Generator) -> Scene:
    """An object of another shape."""
    return _changed(scene, rng, lambda thing: replace(thing, shape=_other(rng, SHAPES, thing.shape)))


def fill(scene: Scene, rng: Generator) -> Scene:
    """An object of another fill."""
    return _changed(scene, rng, lambda thing: replace(thing, fill=_other(rng, FILLS, thing.fill)))


def size(scene: Scene, rng: Generator) -> Scene | None:
    """An object of the other size, somewhere else."""
    chosen = int(rng.integers(len(scene.things)))
    thing, others = scene.things[chosen], scene.things[:chosen] + scene.things[chosen + 1 :]
    moved = sample_place(rng, replace(_kind(thing), size=_other(rng, SIZES, thing.size)), others)
    return None if moved is None else replace(scene, things=(*others, moved))


def swapped(scene: Scene, rng: Generator) -> Scene | None:
    """Two objects of a size in each other's place."""
    if len(scene.things) != 2 or scene.things[0].size != scene.things[1].size:
        return None
    a, b = scene.things
    things = (replace(a, x=b.x, y=b.y, radius=b.radius), replace(b, x=a.x, y=a.y, radius=a.radius))
    return replace(scene, things=things)


def tone(scene: Scene, rng: Generator) -> Scene:
    """Another background."""
    return replace(scene, tone=_other(rng, tuple(TONES), scene.tone))


CHANGES: dict[Change, float] = {  # and how often each is tried
    more: 0.15,
    less: 0.15,
    colour: 0.28,
    shape: 0.26,
    fill: 0.05,
    size: 0.03,
    swapped: 0.04,
    tone: 0.04,
}


def _kind(thing: Thing) -> Kind:
    return Kind(thing.shape, thing.colour, thing.size, thing.fill)


def _other(rng: Generator, options: tuple[T, ...], now: T) -> T:
    return pick(rng, [one for one in options if one != now])


def _changed(scene: Scene, rng: Generator, change: Callable[[Thing], Thing]) -> Scene:
    chosen = int(rng.integers(len(scene.things)))
    return replace(scene, things=tuple(change(one) if i == chosen else one for i, one in enumerate(scene.things)))
