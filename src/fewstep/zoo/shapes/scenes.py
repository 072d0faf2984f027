"""What a picture of the `shapes` task shows, and the English that asks for it.

A `Scene` is the whole truth about a picture: one to four objects that do not touch, on one background.
`sample_scene` draws one, `describe` words it. A prompt names only some of what a scene holds, so a scene carries no
wording and a wording carries its own `Ask`: what a picture must show to have answered the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fewstep.zoo.english import article, pick

IMAGE_SIZE = 64

Shape = Literal["circle", "square", "triangle", "diamond", "ring", "cross"]
Colour = Literal["red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink"]
Size = Literal["small", "large"]
Fill = Literal["solid", "striped", "checked"]
Tone = Literal["dark", "grey", "brown", "teal"]
Texture = Literal["graded", "wavy", "cloudy", "tiled"]
Relation = Literal["left of", "right of", "above", "below"]

SHAPES: tuple[Shape, ...] = ("circle", "square", "triangle", "diamond", "ring", "cross")
COLOURS: dict[Colour, tuple[float, float, float]] = {
    "red": (0.90, 0.10, 0.12),
    "orange": (1.00, 0.52, 0.05),
    "yellow": (1.00, 0.92, 0.10),
    "green": (0.15, 0.78, 0.18),
    "cyan": (0.20, 0.88, 0.95),
    "blue": (0.12, 0.25, 0.95),
    "purple": (0.65, 0.15, 0.85),
    "pink": (1.00, 0.42, 0.70),
}
SIZES: tuple[Size, ...] = ("small", "large")
FILLS: tuple[Fill, ...] = ("solid", "striped", "checked")
# Muted: every object is more saturated than any background, even where a pattern darkens it.
TONES: dict[Tone, tuple[float, float, float]] = {
    "dark": (0.13, 0.13, 0.15),
    "grey": (0.50, 0.50, 0.51),
    "brown": (0.40, 0.32, 0.26),
    "teal": (0.25, 0.35, 0.35),
}
TEXTURES: tuple[Texture, ...] = ("graded", "wavy", "cloudy", "tiled")
RELATIONS: tuple[Relation, ...] = ("left of", "right of", "above", "below")

# Half the extent of an object in pixels; the gap between the two ranges is what makes "small" and "large" readable.
RADII: dict[Size, tuple[float, float]] = {"small": (8.0, 9.5), "large": (12.5, 14.5)}
MARGIN = 1.5  # free pixels around every object
APART = 14.0  # how far two objects stand apart, in pixels, along the axis of a relation that a prompt may name


@dataclass(frozen=True)
class Kind:
    """What an object is like, wherever it is."""

    shape: Shape
    colour: Colour
    size: Size
    fill: Fill


@dataclass(frozen=True)
class Thing:
    """One object. `x`, `y` are its centre in pixels (x right, y down), `radius` half its extent in pixels."""

    shape: Shape
    colour: Colour
    size: Size
    fill: Fill
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """`things` in no particular order; `seed` draws the texture's phase, direction and grain."""

    things: tuple[Thing, ...]
    tone: Tone
    texture: Texture
    seed: int


@dataclass(frozen=True)
class ThingAsk:
    """What a prompt says of one object; None is "not said"."""

    shape: Shape
    colour: Colour
    size: Size | None = None
    fill: Fill | None = None

    def met_by(self, thing: Thing) -> bool:
        return (
            thing.shape == self.shape
            and thing.colour == self.colour
            and self.size in (None, thing.size)
            and self.fill in (None, thing.fill)
        )


@dataclass(frozen=True)
class Ask:
    """What a prompt asks for: exactly these `things`, the first one `relation` the second, on this background."""

    things: tuple[ThingAsk, ...]
    relation: Relation | None = None
    tone: Tone | None = None
    texture: Texture | None = None


def holds(relation: Relation, a: Thing, b: Thing) -> bool:
    """Whether `a` stands in `relation` to `b`, judged on the axis along which their centres are further apart."""
    dx, dy = a.x - b.x, a.y - b.y
    if abs(dx) >= abs(dy):
        return relation == ("left of" if dx < 0 else "right of")
    return relation == ("above" if dy < 0 else "below")


# How many objects a scene holds, and how often.
COUNTS = {1: 0.40, 2: 0.40, 3: 0.12, 4: 0.08}


def sample_scene(rng: np.random.Generator) -> Scene:
    """A scene whose objects all have room: drawn again until they do. Three and four objects are all of one kind."""
    count = int(rng.choice(list(COUNTS), p=list(COUNTS.values())))
    alike = count >= 3  # "three small red rings"
    while True:
        kinds = [sample_kind(rng, count)] * count if alike else [sample_kind(rng, count) for _ in range(count)]
        things = _place(rng, kinds)
        if things is not None:
            break
    return Scene(
        things=things,
        tone=pick(rng, tuple(TONES)),
        texture=pick(rng, TEXTURES),
        seed=int(rng.integers(2**31)),
    )


def sample_kind(rng: np.random.Generator, count: int) -> Kind:
    """What one of so many objects is like; where there are many, they are small."""
    large = rng.random() < (0.5 if count <= 2 else 0.15)
    fill: Fill = "solid" if rng.random() < 0.5 else pick(rng, FILLS[1:])
    return Kind(pick(rng, SHAPES), pick(rng, tuple(COLOURS)), "large" if large else "small", fill)


def sample_place(rng: np.random.Generator, kind: Kind, placed: Sequence[Thing], tries: int = 60) -> Thing | None:
    """One of this kind with `MARGIN` around it and around those that are placed, or None if chance found no room."""
    for _ in range(tries):
        radius = float(rng.uniform(*RADII[kind.size]))
        low, high = radius + MARGIN, IMAGE_SIZE - radius - MARGIN
        x, y = (float(v) for v in rng.uniform(low, high, 2))
        if all(max(abs(x - o.x), abs(y - o.y)) > radius + o.radius + 2 * MARGIN for o in placed):
            return Thing(kind.shape, kind.colour, kind.size, kind.fill, x, y, radius)
    return None


def _place(rng: np.random.Generator, kinds: list[Kind]) -> tuple[Thing, ...] | None:
    """Places for all `kinds`, or None if chance found none."""
    placed: list[Thing] = []
    for kind in kinds:
        if (thing := sample_place(rng, kind, placed)) is None:
            return None
        placed.append(thing)
    return tuple(placed)


# ---------------------------------------------------------------------------------------------------------------------
# English

SHAPE_WORDS: dict[Shape, tuple[str, ...]] = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "diamond": ("diamond", "rhombus"),
    "ring": ("ring", "hoop"),
    "cross": ("cross", "plus"),
}
COLOUR_WORDS: dict[Colour, tuple[str, ...]] = {name: (name,) for name in COLOURS} | {"purple": ("purple", "violet")}
SIZE_WORDS: dict[Size, tuple[str, ...]] = {"small": ("small", "little"), "large": ("large", "big")}
FILL_WORDS: dict[Fill, tuple[str, ...]] = {
    "solid": ("solid", "plain"),
    "striped": ("striped", "banded"),
    "checked": ("checked", "chequered"),
}
RELATION_WORDS: dict[Relation, tuple[str, ...]] = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
PLURALS = {"box": "boxes", "cross": "crosses", "plus": "pluses", "rhombus": "rhombuses"}
NUMBERS = {2: "two", 3: "three", 4: "four"}
OPENINGS = ("", "", "", "", "a picture of ", "an image of ", "there is ")


def describe(scene: Scene, rng: np.random.Generator) -> tuple[str, Ask]:
    """One of the many prompts that `scene` answers, and what that prompt asks for.

    Shape, colour and the number of objects are always said; size, fill, relation and background sometimes.
    """
    things, relation = scene.things, None
    if len(things) == 2 and rng.random() < 0.75:
        things, relation = _relate(rng, things)

    asks = tuple(_ask(rng, thing) for thing in things)
    if len(things) >= 2 and len({(t.shape, t.colour, t.size, t.fill) for t in things}) == 1 and relation is None:
        asks = (asks[0],) * len(things)
        text = f"{NUMBERS[len(asks)]} {_noun(rng, asks[0], several=True)}"
    elif relation is not None:
        text = f"{article(_noun(rng, asks[0]))} {pick(rng, RELATION_WORDS[relation])} {article(_noun(rng, asks[1]))}"
    else:
        nouns = [article(_noun(rng, ask)) for ask in asks]
        text = nouns[0] if len(nouns) == 1 else ", ".join(nouns[:-1]) + " and " + nouns[-1]

    tone, texture = None, None
    if rng.random() < 0.5:
        tone = scene.tone
        texture = scene.texture if rng.random() < 0.6 else None
        ground = " ".join(word for word in (texture, tone) if word)
        text = f"{text} on {article(ground)} background"
    opening = pick(rng, OPENINGS)
    if opening == "there is " and not text.startswith(("a ", "an ")):
        opening = "there are "
    return opening + text, Ask(asks, relation, tone, texture)


def sample_prompt(rng: np.random.Generator) -> tuple[str, Ask]:
    """A prompt that some scene answers, as often as the training data holds its like."""
    return describe(sample_scene(rng), rng)


def vocabulary() -> list[str]:
    """Every word that `describe` can use, sorted; the tokenizer is made from it."""
    tables = (SHAPE_WORDS, COLOUR_WORDS, SIZE_WORDS, FILL_WORDS, RELATION_WORDS)
    phrases = [phrase for table in tables for worded in table.values() for phrase in worded]
    words = {word for phrase in phrases for word in phrase.split()}
    words |= {plural(w) for phrases in SHAPE_WORDS.values() for w in phrases}
    words |= {w for opening in OPENINGS for w in opening.split()}
    words |= {*NUMBERS.values(), *TONES, *TEXTURES, "a", "an", "and", "are", "on", "background", ","}
    return sorted(words)


def _relate(rng: np.random.Generator, pair: tuple[Thing, ...]) -> tuple[tuple[Thing, ...], Relation | None]:
    """The pair in either order with the relation of the first to the second, if it is a clear one."""
    a, b = pair if rng.random() < 0.5 else pair[::-1]
    if max(abs(a.x - b.x), abs(a.y - b.y)) < APART or abs(abs(a.x - b.x) - abs(a.y - b.y)) < APART / 3:
        return pair, None
    return (a, b), next(r for r in RELATIONS if holds(r, a, b))


def _ask(rng: np.random.Generator, thing: Thing) -> ThingAsk:
    says_fill = rng.random() < (0.25 if thing.fill == "solid" else 0.9)
    return ThingAsk(
        thing.shape,
        thing.colour,
        size=thing.size if rng.random() < 0.5 else None,
        fill=thing.fill if says_fill else None,
    )


def _noun(rng: np.random.Generator, ask: ThingAsk, several: bool = False) -> str:
    shape = pick(rng, SHAPE_WORDS[ask.shape])
    words = [
        pick(rng, SIZE_WORDS[ask.size]) if ask.size else "",
        pick(rng, FILL_WORDS[ask.fill]) if ask.fill else "",
        pick(rng, COLOUR_WORDS[ask.colour]),
        plural(shape) if several else shape,
    ]
    return " ".join(word for word in words if word)


def plural(noun: str) -> str:
    return PLURALS.get(noun, noun + "s")
