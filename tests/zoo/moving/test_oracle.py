"""The oracle on real clips, on worn ones, and on clips that it must not accept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from fewstep.errors import InputError
from fewstep.zoo.moving.oracle import STILL, answers, matches, read, still_answers
from fewstep.zoo.moving.render import render
from fewstep.zoo.moving.scenes import (
    COLOURS,
    DIRECTIONS,
    SHAPES,
    Ask,
    Scene,
    Thing,
    ThingAsk,
    describe,
    sample_scene,
)

Clip = NDArray[np.float32]
SCENES = 60
RING = Thing("ring", "red", "left", 2.0, x=50, y=14, radius=7)
SQUARE = Thing("square", "blue", "down", 1.0, x=50, y=36, radius=7)
SCENE = Scene((RING, SQUARE), "grey", "cloudy", 3)
ASKED = Ask((ThingAsk("ring", "red", "left", "fast"), ThingAsk("square", "blue", "down", "slow")))


def worn(clip: Clip, rng: np.random.Generator) -> Clip:
    noise = rng.normal(0, 0.01, clip.shape)
    return np.asarray(np.clip(ndimage.gaussian_filter(clip, (0, 0.7, 0.7, 0)) + noise, 0, 1), dtype=np.float32)


@pytest.mark.parametrize("wear", [False, True], ids=["as drawn", "blurred and noisy"])
def test_real_clips_are_read_right(wear: bool) -> None:
    misread = unanswered = 0
    for seed in range(SCENES):
        rng = np.random.default_rng((77, seed))
        scene = sample_scene(rng)
        _, ask = describe(scene, rng)
        reading = read(worn(render(scene), rng) if wear else render(scene))
        misread += not matches(scene, reading)
        unanswered += not answers(ask, reading)
    assert misread <= 0.01 * SCENES
    assert unanswered <= 0.01 * SCENES


@pytest.mark.parametrize("shape", SHAPES)
def test_every_object_is_read_on_every_way(shape: Any) -> None:
    ways = [(direction, pace) for direction in DIRECTIONS for pace in (0.8, 2.1)]
    for i, (direction, pace) in enumerate(ways):
        thing = Thing(shape, list(COLOURS)[i % 6], direction, pace, 32.3, 31.8, 6.5)
        scene = Scene((thing,), "teal" if i % 2 else "dark", "wavy", i)
        assert matches(scene, read(render(scene))), (direction, pace)


def test_the_scene_answers_what_was_asked_of_it() -> None:
    reading = read(render(SCENE))
    assert matches(SCENE, reading)
    assert answers(ASKED, reading)
    assert answers(Ask(ASKED.things[::-1]), reading)
    assert answers(Ask(tuple(replace(want, speed=None) for want in ASKED.things)), reading)
    assert reading.flicker < 1e-6


@pytest.mark.parametrize(
    "change",
    [{"colour": "pink"}, {"shape": "circle"}, {"direction": "right"}, {"direction": "up"}, {"speed": "slow"}],
    ids=str,
)
def test_one_wrong_word_is_no_answer(change: dict[str, Any]) -> None:
    assert not answers(Ask((replace(ASKED.things[0], **change), ASKED.things[1])), read(render(SCENE)))


@pytest.mark.parametrize("count", [1, 3])
def test_another_number_of_objects_is_no_answer(count: int) -> None:
    things = (*ASKED.things, ThingAsk("circle", "green", "up"))[:count]
    assert not answers(Ask(things), read(render(SCENE)))


def one(clip: Clip) -> bool:
    return answers(Ask((ThingAsk("square", "blue", "down"),)), read(clip))


def alone(**changes: Any) -> Clip:
    return render(replace(SCENE, things=(replace(SQUARE, x=20, y=16, **changes),)))


def test_a_clip_that_is_spoilt_in_one_way_is_no_answer() -> None:
    clip, bare = alone(), render(replace(SCENE, things=()))
    assert one(clip)
    spoilt = {
        "stands still": np.repeat(clip[:1], 17, 0),
        "backwards": clip[::-1],
        "teleports": np.concatenate([clip[:9], np.roll(clip[9:], 20, axis=2)]),
        "jumps there and back": np.concatenate([clip[:5], clip[10:11], clip[6:]]),
        "stutters": clip[np.repeat(np.arange(0, 17, 4), 4)[:17]],
        "turns in the middle": np.concatenate([clip[:9], clip[7::-1]]),
        "vanishes": np.concatenate([clip[:12], bare[12:]]),
        "another comes": np.concatenate([clip[:12], np.maximum(clip[12:], alone(colour="pink", direction="up")[12:])]),
        "changes its colour": np.concatenate([clip[:8], alone(colour="green")[8:]]),
        "changes its shape": np.concatenate([clip[:6], alone(shape="ring")[6:]]),
        "fades": 0.35 * clip + 0.65 * bare,
        "melts": ndimage.gaussian_filter(clip, (0, 5, 5, 0)),
        "slides sideways": np.stack([np.roll(frame, i // 2, axis=1) for i, frame in enumerate(clip)]),
        "flickers": np.clip(clip + 0.05 * (np.arange(17) % 2)[:, None, None, None], 0, 1),
        "is not there": bare,
    }
    assert [name for name, made in spoilt.items() if one(np.asarray(made, np.float32))] == []


def test_an_object_between_two_speeds_has_a_direction() -> None:
    clip = alone(pace=1.45)
    (mover,) = read(clip).things
    assert (mover.direction, mover.speed) == ("down", None)
    assert one(clip)
    assert not answers(Ask((ThingAsk("square", "blue", "down", "fast"),)), read(clip))


def test_an_object_may_come_to_rest_at_a_border() -> None:
    clip = render(replace(SCENE, things=(replace(SQUARE, x=20, y=36, pace=2.0),)))
    rests = np.concatenate([clip[:10], np.repeat(clip[10:11], 7, 0)])
    assert one(rests)


def test_pieces_of_a_long_video_still_answer() -> None:
    kept = wrong = pieces = 0
    for seed in range(12):
        scene = sample_scene(np.random.default_rng(seed))
        _, ask = describe(scene, np.random.default_rng(seed))
        other = Ask(tuple(replace(thing, colour="red" if thing.colour != "red" else "blue") for thing in ask.things))
        long = render(scene, 200)
        for first in range(0, 184, 46):
            reading = read(long[first : first + 17])
            pieces += 1
            kept += still_answers(ask, reading)
            wrong += still_answers(other, reading)
    assert kept >= 0.95 * pieces
    assert wrong == 0
    clip = alone()
    ask = Ask((ThingAsk("square", "blue", "up"),))
    assert still_answers(ask, read(clip))  # the same line, the other way
    assert not still_answers(Ask((ThingAsk("square", "blue", "left"),)), read(clip))
    assert not still_answers(ask, read(np.repeat(clip[:1], 17, 0)))


def test_a_moving_background_is_not_still() -> None:
    reading = read(
        np.stack([np.roll(frame, 2 * i, axis=0) for i, frame in enumerate(render(Scene((), "grey", "wavy", 1)))])
    )
    assert reading.flicker > STILL
    assert not reading.still


def test_a_misreading_is_told_from_a_match() -> None:
    reading = read(render(SCENE))
    assert not matches(replace(SCENE, things=(RING,)), reading)
    assert not matches(replace(SCENE, things=(replace(RING, x=47.0), SQUARE)), reading)
    assert not matches(replace(SCENE, things=(replace(RING, shape="circle"), SQUARE)), reading)
    assert not matches(SCENE, replace(reading, unreadable=1))


@pytest.mark.parametrize("clip", [np.zeros((64, 64, 3)), np.zeros((9, 64, 64, 3)), np.full((17, 64, 64, 3), np.nan)])
def test_what_is_no_clip_is_refused(clip: Any) -> None:
    with pytest.raises(InputError, match="clip"):
        read(clip)
