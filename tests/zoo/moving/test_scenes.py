"""Scenes: paths that bounce, objects that never meet, prompts that say what is there, clips that show it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fewstep.zoo.moving.pipeline import PROMPT_TOKENS, build_tokenizer
from fewstep.zoo.moving.render import background, render
from fewstep.zoo.moving.scenes import (
    AHEAD,
    ALONE,
    COLOURS,
    DIRECTIONS,
    FRAMES,
    SPEEDS,
    Scene,
    Thing,
    describe,
    path,
    sample_scene,
)
from fewstep.zoo.words import as_tokens

SCENES = [sample_scene(np.random.default_rng(seed)) for seed in range(300)]
BALL = Thing("circle", "red", "left", 2.0, x=20.0, y=30.0, radius=7.0)


def test_an_object_bounces_off_the_border() -> None:
    centres = path(BALL)
    assert centres.shape == (FRAMES, 2)
    assert centres[:, 1].tolist() == [30.0] * FRAMES
    # 13 pixels to the border at 2 a frame: 20, 18, …, 8, then 6 folded to 8, and back.
    assert centres[:, 0].tolist() == [20, 18, 16, 14, 12, 10, 8, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26]


def test_objects_stay_in_the_picture_and_keep_their_first_direction_for_half_of_the_clip() -> None:
    for thing in (thing for scene in SCENES for thing in scene.things):
        centres = path(thing)
        assert centres.min() >= thing.radius - 1e-4
        assert centres.max() <= 64 - thing.radius + 1e-4
        straight = (centres[AHEAD] - centres[0]) / (AHEAD * thing.pace)
        np.testing.assert_allclose(straight, DIRECTIONS[thing.direction], atol=1e-4)


def test_two_objects_never_come_near_each_other_and_differ_in_colour() -> None:
    pairs = [scene.things for scene in SCENES if len(scene.things) == 2]
    assert len(pairs) / len(SCENES) == pytest.approx(1 - ALONE, abs=0.1)
    for a, b in pairs:
        assert a.colour != b.colour
        apart = np.abs(path(a)[:, None] - path(b)[None]).max(-1).min()  # at any two times, on the better axis
        assert apart > a.radius + b.radius


def test_scenes_vary_in_all_that_is_asked_for() -> None:
    things = [thing for scene in SCENES for thing in scene.things]
    assert {thing.colour for thing in things} == set(COLOURS)
    assert {(thing.direction, thing.speed) for thing in things} == {(d, s) for d in DIRECTIONS for s in SPEEDS}
    turned = [np.abs(path(thing)[-1] - path(thing)[0]).max() < 15.9 * thing.pace for thing in things]
    assert 0.15 < np.mean(turned) < 0.6  # bounces are common


def test_only_a_small_part_of_the_picture_moves() -> None:
    shares = []
    for scene in (scene for scene in SCENES[:100] if len(scene.things) == 1):
        clip = render(scene)
        assert clip.shape == (FRAMES, 64, 64, 3)
        shares.append((np.ptp(clip, axis=0).max(-1) > 0.05).mean())
    assert max(shares) <= 0.2


def test_a_clip_is_its_background_where_nothing_is() -> None:
    scene = Scene((replace(BALL, direction="right", x=7.0),), "brown", "cloudy", 3)
    clip = render(scene)
    np.testing.assert_array_equal(clip[:, 40:], np.repeat(background(scene)[None, 40:], FRAMES, 0))
    np.testing.assert_allclose(clip[5, 30, 17], COLOURS["red"], atol=1e-6)
    assert clip.min() >= 0
    assert clip.max() <= 1
    np.testing.assert_array_equal(clip, render(scene))


def test_a_background_is_muted() -> None:
    for scene in SCENES[:60]:
        still = background(scene)
        assert (still.max(-1) - still.min(-1)).max() < 0.21
        assert 0.005 < still.std(axis=(0, 1)).max() < 0.21


def test_prompts_say_what_they_ask_for() -> None:
    unsaid = 0
    for seed, scene in enumerate(SCENES):
        text, ask = describe(scene, np.random.default_rng((seed, 5)))
        assert {want.colour for want in ask.things} == {thing.colour for thing in scene.things}
        by_colour = {thing.colour: thing for thing in scene.things}
        places = [text.index(want.colour) for want in ask.things]
        assert places == sorted(places)
        for want in ask.things:
            assert want.met_by(by_colour[want.colour])
            assert not want.met_by(replace(by_colour[want.colour], shape="cross"))
            unsaid += want.speed is None
    assert 0.2 < unsaid / sum(len(scene.things) for scene in SCENES) < 0.45


def test_a_speed_that_was_said_must_be_met() -> None:
    scene = Scene((BALL,), "dark", "wavy", 0)
    asks = [describe(scene, np.random.default_rng(seed)) for seed in range(60)]
    slower = replace(BALL, pace=1.0)
    for text, ask in asks:
        said = any(word in text.split() for word in ("fast", "quick", "quickly", "races", "racing"))
        assert said == (ask.things[0].speed == "fast") == (not ask.things[0].met_by(slower)), text
    assert len({text for text, _ in asks}) > 25


def test_every_prompt_has_its_words_and_fits() -> None:
    tokenizer = build_tokenizer()
    for seed, scene in enumerate(SCENES):
        text, _ = describe(scene, np.random.default_rng((seed, 6)))
        tokens = as_tokens(tokenizer, [text], PROMPT_TOKENS)[0]
        assert tokenizer.unk_token_id not in tokens, text
        assert tokens[tokens != 0][-1] == tokenizer.eos_token_id, text
