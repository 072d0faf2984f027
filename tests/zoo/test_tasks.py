"""The tasks: prompts, real samples and how they are judged."""

from __future__ import annotations

import re

import numpy as np
import pytest

from fewstep.errors import InputError
from fewstep.zoo.tasks import TASKS, Task, task, task_of

SHAPES = task("shapes")
EVERY = pytest.mark.parametrize("each", TASKS.values(), ids=TASKS)


@EVERY
def test_prompts_come_from_the_seed_and_not_from_their_number(each: Task) -> None:
    assert each.prompts(5, 3) == each.prompts(9, 3)[:5]
    assert each.prompts(5, 3) != each.prompts(5, 4)


@pytest.mark.parametrize(("name", "shape"), [("shapes", (64, 64, 3)), ("moving-shapes", (17, 64, 64, 3))])
def test_reference_samples_come_from_the_seed(name: str, shape: tuple[int, ...]) -> None:
    each = task(name)
    np.testing.assert_array_equal(each.reference(2, 1), each.reference(3, 1)[:2])
    assert each.reference(2, 1).shape == (2, *shape)


@EVERY
def test_real_answers_are_accurate_and_those_to_other_prompts_are_not(each: Task) -> None:
    asks = [ask for _, ask in each.prompts(24, 0)]
    samples = np.concatenate([each.answering(ask, 1, i) for i, ask in enumerate(asks)])
    assert each.accuracy(asks, samples) == 1
    assert each.accuracy(asks, samples[::-1]) < 0.2
    assert each.correct(asks[:2], samples[[0, 0]]) == [True, False]


@EVERY
def test_single_is_one_object(each: Task) -> None:
    several = re.compile(r" and | while |left of|right of|above|over|below|under|\btwo\b|\bthree\b|\bfour\b")
    for text, ask in each.prompts(60, 1):
        assert each.single(ask) == (several.search(text) is None), text


@EVERY
def test_diversity_is_none_for_copies_and_one_for_real_samples(each: Task) -> None:
    _, ask = each.prompts(1, 0)[0]
    real = each.answering(ask, 24, 5)
    assert each.diversity(np.repeat(real[:1], 4, axis=0), real) == pytest.approx(0, abs=1e-6)
    assert each.diversity(each.answering(ask, 24, 6), real) == pytest.approx(1, abs=0.15)


def test_washed_out_pictures_are_less_diverse() -> None:
    _, ask = SHAPES.prompts(1, 0)[0]
    real = SHAPES.answering(ask, 24, 5)
    assert SHAPES.diversity(0.5 * (real + real.mean(0)), real) < 0.95
    assert SHAPES.diversity(SHAPES.reference(48, 3)) == pytest.approx(1, abs=0.15)


def test_a_task_that_is_none() -> None:
    with pytest.raises(InputError, match="shapes"):
        task("unicorns")


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("shapes", "shapes"),
        ("shapes-4step", "shapes"),
        ("moving-shapes", "moving-shapes"),
        ("moving-shapes-4step", "moving-shapes"),
    ],
)
def test_a_model_is_of_the_task_that_it_is_named_after(model: str, name: str) -> None:
    assert task_of(model).name == name


@pytest.mark.parametrize("model", ["moving", "shapesque", "my-shapes"])
def test_a_model_of_no_task(model: str) -> None:
    with pytest.raises(InputError, match=model):
        task_of(model)


def test_as_many_samples_as_asks() -> None:
    with pytest.raises(InputError, match="samples"):
        SHAPES.accuracy([SHAPES.prompts(1, 0)[0][1]], SHAPES.reference(2, 0))
