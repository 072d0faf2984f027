"""What a clip of the `moving-shapes` task shows, and the English that asks for it.

A `Scene` is the whole truth about a clip: one or two objects, each on a straight line that it follows to and fro
between two borders of the picture, on one still background. `sample_scene` draws one, `describe` words it, and a
wording carries its own `Ask`: what a clip must show to have answered the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fewstep.zoo.english import article, pick
from fewstep.zoo.shapes.scenes import COLOURS as SHAPES_COLOURS
from fewstep.zoo.shapes.scenes import IMAGE_SIZE, TONES, Tone
from fewstep.zoo.shapes.scenes import Colour as AnyColour
from fewstep.zoo.shapes.scenes import Shape as AnyShape

FRAMES = 17

Direction = Literal["left", "right", "up", "down"]
Speed = Literal["slow", "fast"]
Texture = Literal["graded", "wavy", "cloudy"]

SHAPES: tuple[AnyShape, ...] = ("circle", "square", "triangle", "ring")
COLOURS: dict[AnyColour, tuple[float, float, float]] = {
    name: SHAPES_COLOURS[name] for name in ("red", "yellow", "green", "cyan", "blue", "pink")
}
# Unit steps, x to the right and y down.
DIRECTIONS: dict[Direction, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SPEEDS: dict[Speed, tuple[float, float]] = {"slow": (0.8, 1.1), "fast": (1.8, 2.1)}  # pixels a frame
TEXTURES: tuple[Texture, ...] = ("graded", "wavy", "cloudy")

RADII = (7.5, 8.5)  # half the extent of an object in pixels
APART = 4.0  # free pixels between the bands that two objects sweep
ALONE = 0.65  # share of the scenes with one object
AHEAD = FRAMES // 2  # frames for which every object keeps its first direction


@dataclass(frozen=True)
class Thing:
    """One object. `x`, `y` are its centre in the first frame, in pixels (x right, y down); `pace` in pixels a frame."""

    shape: AnyShape
    colour: AnyColour
    direction: Direction
    pace: float
    x: float
    y: float
    radius: float

    @property
    def speed(self) -> Speed:
        return "slow" if self.pace <= SPEEDS["slow"][1] else "fast"


@dataclass(frozen=True)
class Scene:
    """`things` in no particular order; `seed` draws the background's waves."""

    things: tuple[Thing, ...]
    tone: Tone
    texture: Texture
    seed: int


def path(thing: Thing, frames: int = FRAMES) -> NDArray[np.float32]:
    """The centre in every frame, shape (frames, 2), x before y: a straight line, folded at the borders."""
    step = thing.pace * np.array(DIRECTIONS[thing.direction])
    straight = np.array([thing.x, thing.y]) + np.arange(frames)[:, None] * step
    room = IMAGE_SIZE - 2 * thing.radius
    folded = (straight - thing.radius) % (2 * room)
    return (thing.radius + np.minimum(folded, 2 * room - folded)).astype(np.float32)


def sample_scene(rng: np.random.Generator) -> Scene:
    """A scene whose objects never meet: two are drawn again until the bands that they sweep lie apart."""
    count = 1 if rng.random() < ALONE else 2
    while True:
        colours = rng.permutation(len(COLOURS))[:count]
        things = tuple(_sample_thing(rng, list(COLOURS)[colour]) for colour in colours)
        if count == 1 or _apart(*things):
            break
    return Scene(things, pick(rng, tuple(TONES)), pick(rng, TEXTURES), int(rng.integers(2**31)))


def _sample_thing(rng: np.random.Generator, colour: AnyColour) -> Thing:
    direction, speed = pick(rng, tuple(DIRECTIONS)), pick(rng, tuple(SPEEDS))
    radius, pace = float(rng.uniform(*RADII)), float(rng.uniform(*SPEEDS[speed]))
    room = IMAGE_SIZE - 2 * radius
    behind, lane = float(rng.uniform(0, room - AHEAD * pace)), float(rng.uniform(0, room))
    across, down = DIRECTIONS[direction]
    along = behind if across + down > 0 else room - behind
    x, y = (along, lane) if across else (lane, along)
    return Thing(pick(rng, SHAPES), colour, direction, pace, x + radius, y + radius, radius)


def _apart(a: Thing, b: Thing) -> bool:
    (low_a, high_a), (low_b, high_b) = _band(a), _band(b)
    return bool(np.maximum(low_a - high_b, low_b - high_a).max() >= APART)


def _band(thing: Thing) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The corners of the box that an object sweeps, each (2,)."""
    centres = path(thing)
    return centres.min(0) - thing.radius, centres.max(0) + thing.radius


# ---------------------------------------------------------------------------------------------------------------------
# Asks


@dataclass(frozen=True)
class ThingAsk:
    """What a prompt says of one object; a speed of None is "not said"."""

    shape: AnyShape
    colour: AnyColour
    direction: Direction
    speed: Speed | None = None

    def met_by(self, thing: Any) -> bool:
        """Whether `thing`, with a shape, a colour, a direction and a speed, is what was asked for."""
        return (
            thing.shape == self.shape
            and thing.colour == self.colour
            and thing.direction == self.direction
            and self.speed in (None, thing.speed)
        )


@dataclass(frozen=True)
class Ask:
    """What a prompt asks for: exactly these `things`."""

    things: tuple[ThingAsk, ...]


# ---------------------------------------------------------------------------------------------------------------------
# English

SHAPE_WORDS: dict[AnyShape, tuple[str, ...]] = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "ring": ("ring", "hoop"),
}
DIRECTION_WORDS: dict[Direction, tuple[str, ...]] = {
    "left": ("left", "to the left", "leftwards"),
    "right": ("right", "to the right", "rightwards"),
    "up": ("up", "upwards"),
    "down": ("down", "downwards"),
}
# Three ways to say a speed: before the noun, after the direction, or by the verb.
ADJECTIVES: dict[Speed, tuple[str, ...]] = {"slow": ("slow",), "fast": ("fast", "quick")}
ADVERBS: dict[Speed, tuple[str, ...]] = {"slow": ("slowly",), "fast": ("fast", "quickly")}
VERBS: dict[Speed | None, tuple[tuple[str, str], ...]] = {  # "a ring …", "a clip of a ring …"
    None: (("moves", "moving"), ("goes", "going"), ("slides", "sliding")),
    "slow": (("creeps", "creeping"),),
    "fast": (("races", "racing"),),
}
OPENINGS = ("a clip of ", "a video of ")
JOINERS = ("and", "while")


def describe(scene: Scene, rng: np.random.Generator) -> tuple[str, Ask]:
    """One of the many prompts that `scene` answers, and what that prompt asks for.

    Shape, colour and direction of every object are always said, its speed two times in three.
    """
    things = scene.things if rng.random() < 0.5 else scene.things[::-1]
    asks = tuple(
        ThingAsk(thing.shape, thing.colour, thing.direction, thing.speed if rng.random() < 0.67 else None)
        for thing in things
    )
    form = int(rng.random() < 0.5)
    opening = pick(rng, OPENINGS) if form and rng.random() < 0.4 else ""
    joiner = "and" if form else pick(rng, JOINERS)
    return opening + f" {joiner} ".join(_phrase(rng, ask, form) for ask in asks), Ask(asks)


def sample_prompt(rng: np.random.Generator) -> tuple[str, Ask]:
    """A prompt that some scene answers, as often as the training data holds its like."""
    return describe(sample_scene(rng), rng)


def vocabulary() -> list[str]:
    """Every word that `describe` can use, sorted; the tokenizer is made from it."""
    tables: tuple[dict[Any, tuple[str, ...]], ...] = (SHAPE_WORDS, DIRECTION_WORDS, ADJECTIVES, ADVERBS)
    phrases = [phrase for table in tables for worded in table.values() for phrase in worded]
    phrases += [form for verbs in VERBS.values() for verb in verbs for form in verb]
    return sorted({word for phrase in (*phrases, *OPENINGS, *JOINERS, *COLOURS, "a", "an") for word in phrase.split()})


def _phrase(rng: np.random.Generator, ask: ThingAsk, form: int) -> str:
    """ "a fast red ring moving left"; verbs end in -s for form 0 and in -ing for form 1."""
    way = pick(rng, ("adjective", "adverb", "verb")) if ask.speed else None
    noun = f"{ask.colour} {pick(rng, SHAPE_WORDS[ask.shape])}"
    if ask.speed and way == "adjective":
        noun = f"{pick(rng, ADJECTIVES[ask.speed])} {noun}"
    verb = pick(rng, VERBS[ask.speed if way == "verb" else None])[form]
    moved = f"{article(noun)} {verb} {pick(rng, DIRECTION_WORDS[ask.direction])}"
    return f"{moved} {pick(rng, ADVERBS[ask.speed])}" if ask.speed and way == "adverb" else moved
