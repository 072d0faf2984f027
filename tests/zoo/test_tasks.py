"""The shapes task: prompts, real pictures and how they are judged."""

from __future__ import annotations

import re

import numpy as np
import pytest

from fewstep.errors import InputError
from fewstep.zoo.tasks import task

SHAPES = task("shapes")


def test_prompts_come_from_the_seed_and_not_from_their_number() -> None:
    assert SHAPES.prompts(5, 3) == SHAPES.prompts(9, 3)[:5]
    assert SHAPES.prompts(5, 3) != SHAPES.prompts(5, 4)


def test_reference_pictures_come_from_the_seed() -> None:
    np.testing.assert_array_equal(SHAPES.reference(2, 1), SHAPES.reference(3, 1)[:2])
    assert SHAPES.reference(2, 1).shape == (2, 64, 64, 3)


def test_real_answers_are_accurate_and_those_to_other_prompts_are_not() -> None:
    asks = [ask for _, ask in SHAPES.prompts(24, 0)]
    images = np.concatenate([SHAPES.answering(ask, 1, i) for i, ask in enumerate(asks)])
    assert SHAPES.accuracy(asks, images) == 1
    assert SHAPES.accuracy(asks, images[::-1]) < 0.2
    assert SHAPES.correct(asks[:2], images[[0, 0]]) == [True, False]


def test_single_is_one_object() -> None:
    several = re.compile(r" and |left of|right of|above|over|below|under|\btwo\b|\bthree\b|\bfour\b")
    for text, ask in SHAPES.prompts(60, 1):
        assert SHAPES.single(ask) == (several.search(text) is None), text


def test_diversity_is_none_for_copies_and_one_for_real_pictures() -> None:
    _, ask = SHAPES.prompts(1, 0)[0]
    real = SHAPES.answering(ask, 24, 5)
    assert SHAPES.diversity(np.repeat(real[:1], 4, axis=0), real) == pytest.approx(0, abs=1e-6)
    assert SHAPES.diversity(SHAPES.answering(ask, 24, 6), real) == pytest.approx(1, abs=0.15)
    assert SHAPES.diversity(0.5 * (real + real.mean(0)), real) < 0.95
    assert SHAPES.diversity(SHAPES.reference(48, 3)) == pytest.approx(1, abs=0.15)


def test_a_task_that_is_none() -> None:
    with pytest.raises(InputError, match="shapes"):
        task("unicorns")


def test_as_many_images_as_asks() -> None:
    with pytest.raises(InputError, match="samples"):
        SHAPES.accuracy([SHAPES.prompts(1, 0)[0][1]], SHAPES.reference(2, 0))
