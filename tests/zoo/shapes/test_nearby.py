"""Near misses: two scenes that differ in one thing, and captions that tell them apart."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from fewstep.errors import InputError
from fewstep.zoo.drawn import Drawn
from fewstep.zoo.shapes.nearby import CHANGES, nearby, sample_even
from fewstep.zoo.shapes.oracle import answers, read, shown
from fewstep.zoo.shapes.pipeline import PROMPT_TOKENS, build_tokenizer
from fewstep.zoo.shapes.scenes import IMAGE_SIZE, MARGIN, Scene


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_changes_one_thing_and_leaves_a_scene_that_can_be_drawn(change):
    seen = 0
    for seed in range(200):
        draw = rng(seed)
        scene = sample_even(draw)
        other = change(scene, draw)
        if other is None:
            continue
        seen += 1
        assert other != scene
        assert all(
            one.radius + MARGIN <= min(one.x, one.y, IMAGE_SIZE - one.x, IMAGE_SIZE - one.y) for one in other.things
        )
        for i, one in enumerate(other.things):
            apart = [max(abs(one.x - o.x), abs(one.y - o.y)) - one.radius - o.radius for o in other.things[:i]]
            assert all(gap > 2 * MARGIN for gap in apart)
        assert len(set(scene.things) - set(other.things)) <= (2 if change.__name__ == "swapped" else 1)
        assert replace(other, things=scene.things, tone=scene.tone) == scene
    assert seen > 5


def test_all_changes_come_and_all_counts():
    counts = Counter(len(sample_even(rng(seed)).things) for seed in range(400))
    assert set(counts) == {1, 2, 3, 4}
    assert min(counts.values()) > 60
    kinds = Counter(_kind(scene := sample_even(draw := rng(seed)), nearby(scene, draw)) for seed in range(300))
    assert set(kinds) == {"more", "less", "things", "tone"}


def _kind(scene: Scene, other: Scene) -> str:
    if len(scene.things) != len(other.things):
        return "more" if len(other.things) > len(scene.things) else "less"
    return "things" if scene.things != other.things else "tone"


def test_each_caption_is_right_for_its_picture_and_wrong_for_the_others():
    pairs = Drawn("shapes", 40, seed=7, near=True)
    samples = list(pairs.read(range(40)))
    assert next(pairs.read(range(5, 6))).caption == samples[5].caption
    readings = [read(one.media / 255) for one in samples]
    asks = [one.ask for number in range(20) for one in pairs.pair(number)]
    own = [answers(ask, reading) for ask, reading in zip(asks, readings, strict=True)]
    other = [answers(ask, readings[i ^ 1]) for i, ask in enumerate(asks)]
    assert np.mean(own) > 0.9  # the oracle itself misreads a few
    assert np.mean(other) < 0.05


def test_captions_are_read_to_their_end():
    tokenizer = build_tokenizer()
    captions = [one.caption for number in range(150) for one in Drawn("shapes", 300, near=True).pair(number)]
    lengths = [len(tokenizer(caption).input_ids) for caption in captions]
    assert max(lengths) == PROMPT_TOKENS  # and no longer: the limit is the right one


def test_a_perfect_reader_sees_what_the_scene_holds():
    scene = sample_even(rng(3))
    reading = shown(scene)
    assert (reading.things, reading.tone, reading.unreadable) == (scene.things, scene.tone, 0)


def test_a_task_without_near_misses_says_so():
    with pytest.raises(InputError, match="moving-shapes knows no near misses"):
        Drawn("moving-shapes", 4, near=True)
