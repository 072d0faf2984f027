"""The oracle on real pictures, on worn ones, and on pictures that it must not accept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from fewstep.errors import InputError
from fewstep.zoo.shapes.oracle import Reading, answers, matches, read
from fewstep.zoo.shapes.render import render
from fewstep.zoo.shapes.scenes import (
    COLOURS,
    FILLS,
    SHAPES,
    TONES,
    Ask,
    Scene,
    Thing,
    ThingAsk,
    describe,
    sample_scene,
)

Image = NDArray[np.float32]
SCENES = 400
RING = Thing("ring", "red", "large", "solid", 20, 22, 12)
SQUARE = Thing("square", "blue", "small", "striped", 50, 45, 7)
SCENE = Scene((RING, SQUARE), "grey", "cloudy", 3)


def worn(image: Image, rng: np.random.Generator) -> Image:
    noise = rng.normal(0, 0.02, image.shape)
    return np.asarray(ndimage.gaussian_filter(image, (0.5, 0.5, 0)) + noise, dtype=np.float32)


@pytest.mark.parametrize("wear", [False, True], ids=["as drawn", "blurred and noisy"])
def test_real_pictures_are_read_right(wear: bool) -> None:
    misread = unanswered = texture = 0
    for seed in range(SCENES):
        rng = np.random.default_rng((77, seed))
        scene = sample_scene(rng)
        _, ask = describe(scene, rng)
        reading = read(worn(render(scene), rng) if wear else render(scene))
        misread += not matches(scene, reading)
        unanswered += not answers(ask, reading)
        texture += reading.texture != scene.texture
    assert misread <= 0.01 * SCENES
    assert unanswered <= 0.01 * SCENES
    assert texture <= (0.12 if wear else 0.03) * SCENES


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_kind_of_object_is_read_in_every_colour(shape: Any, fill: Any) -> None:
    for i, colour in enumerate(COLOURS):
        tone = list(TONES)[i % 4]
        scene = Scene((Thing(shape, colour, "small", fill, 20.3, 30.8, 7.1),), tone, "wavy", i)
        assert matches(scene, read(render(scene))), (colour, tone)


def test_the_place_is_read_to_a_fraction_of_a_pixel() -> None:
    scene = Scene((Thing("circle", "green", "large", "checked", 31.37, 28.62, 11.9),), "dark", "tiled", 1)
    (seen,) = read(render(scene)).things
    assert abs(seen.x - 31.37) < 0.1
    assert abs(seen.y - 28.62) < 0.1
    assert abs(seen.radius - 11.9) < 0.1


def test_an_empty_background_has_no_objects() -> None:
    reading = read(render(replace(SCENE, things=())))
    assert (reading.things, reading.unreadable, reading.tone) == ((), 0, "grey")


@pytest.mark.parametrize("spoil", ["cut", "two colours", "faded", "melted", "smeared"])
def test_a_half_formed_object_is_unreadable(spoil: str) -> None:
    thing = Thing("square", "red", "large", "solid", 30, 30, 12)
    image = render(Scene((thing,), "grey", "graded", 0))
    bare = render(Scene((), "grey", "graded", 0))
    if spoil == "cut":  # a quarter of it is missing
        image[30:, 30:] = bare[30:, 30:]
    elif spoil == "two colours":
        image[:, 30:] = render(Scene((replace(thing, colour="blue"),), "grey", "graded", 0))[:, 30:]
    elif spoil == "faded":
        image = 0.5 * image + 0.5 * bare
    elif spoil == "melted":
        image = np.maximum(image, render(Scene((replace(thing, shape="ring", x=44.0, y=40.0),), "grey", "graded", 0)))
    else:
        image = ndimage.gaussian_filter(image, (6, 6, 0))
    reading = read(image)
    assert reading.unreadable >= 1
    assert not answers(Ask((ThingAsk("square", "red"),)), reading)


def test_a_background_of_no_known_tone_is_none() -> None:
    assert read(np.full((64, 64, 3), (0.9, 0.9, 0.9), np.float32)).tone is None


def test_a_flat_background_has_no_texture() -> None:
    assert read(np.full((64, 64, 3), TONES["teal"], np.float32)).texture is None


def asked(**changes: Any) -> Ask:
    exact = Ask((ThingAsk("ring", "red", "large", "solid"), ThingAsk("square", "blue")), "left of", "grey", "cloudy")
    return replace(exact, **changes)


READING = Reading((SQUARE, RING), "grey", "cloudy")


@pytest.mark.parametrize(
    "ask",
    [
        asked(),
        asked(tone=None, relation=None),
        asked(things=(ThingAsk("square", "blue", fill="striped"), ThingAsk("ring", "red")), relation="right of"),
        asked(texture="wavy"),  # not judged
    ],
)
def test_what_answers_a_prompt(ask: Ask) -> None:
    assert answers(ask, READING)


@pytest.mark.parametrize(
    "ask",
    [
        asked(tone="teal"),
        asked(relation="right of"),
        asked(relation="above"),  # the centres are further apart across than down
        asked(things=asked().things[:1], relation=None),  # one object too many is there
        asked(things=(*asked().things, ThingAsk("circle", "red"))),
        asked(things=(ThingAsk("ring", "red"), ThingAsk("ring", "red")), relation=None),  # one ring can't be both
        asked(things=(ThingAsk("ring", "red", "small"), ThingAsk("square", "blue"))),
        asked(things=(ThingAsk("ring", "red"), ThingAsk("square", "blue", fill="checked"))),
        asked(things=(ThingAsk("ring", "orange"), ThingAsk("square", "blue"))),
    ],
)
def test_what_does_not_answer_a_prompt(ask: Ask) -> None:
    assert not answers(ask, READING)


def test_an_unreadable_object_spoils_the_answer() -> None:
    assert not answers(asked(), replace(READING, unreadable=1))


def test_a_misreading_is_told_from_a_match() -> None:
    assert matches(SCENE, READING)
    assert not matches(SCENE, replace(READING, tone="dark"))
    assert not matches(SCENE, replace(READING, things=(SQUARE, replace(RING, x=22.0))))
    assert not matches(SCENE, replace(READING, things=(SQUARE,)))


@pytest.mark.parametrize("image", [np.zeros((32, 32, 3)), np.zeros((64, 64)), np.full((64, 64, 3), np.nan)])
def test_what_is_no_picture_is_refused(image: Any) -> None:
    with pytest.raises(InputError, match="image"):
        read(image)
