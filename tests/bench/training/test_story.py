"""Sentences about a run: what is right to say of each kind of it."""

from __future__ import annotations

import numpy as np
import pytest

from fewstep.bench.training import story
from fewstep.bench.training.read import Run, Stage
from tests.bench.training.runs import verdict

DRAW = np.random.default_rng(0)


def stage(loss, total=None, metrics=(), guard=(), names=("student",), norm=0.5, seconds=None, **settings):
    seconds = np.full(len(loss), 0.5) if seconds is None else seconds
    lines = tuple(
        {
            "step": i + 1,
            "loss": dict.fromkeys(names, float(value)),
            "gradient": dict.fromkeys(names, norm),
            "rate": 1e-3,
            "seconds": float(seconds[i]),
        }
        for i, value in enumerate(loss)
    )
    return Stage("", lines, tuple(metrics), tuple(guard), settings, total, {}, None)


def told(one):
    return story.sentences(Run(None, {}, (one,)))[0]  # type: ignore[arg-type]


def level(steps=400, start=1.0):
    """Falls in its first half, then noise about 0.1."""
    return np.maximum(0.1, start * (1 - np.arange(steps) / (steps / 2))) * DRAW.lognormal(0, 0.1, steps)


ACCURACY = [
    {"step": 100, "prompt_accuracy": 0.5, "distance": 0.4},
    {"step": 200, "prompt_accuracy": 0.9, "distance": 0.1},
    {"step": 400, "prompt_accuracy": 0.8, "distance": 0.2},
]


def test_where_it_stands():
    assert told(stage(level(), 400)) == "The run finished its 400 steps in 3 min 20 s. No samples were measured."
    assert told(stage(level(), 1000)).startswith("The run stands at step 400 of 1,000, after 3 min 20 s.")
    assert told(stage(level())).startswith("The run stands at step 400.")
    stopped = stage(level(), 1000, guard=[verdict(400, "stop", "It collapsed.", finite=False)])
    assert told(stopped).startswith("The run was stopped by its guard. It collapsed.")
    best = told(stage(level(), 400, ACCURACY))
    assert best.endswith("By prompt_accuracy its best step is 200 with 0.9; the last has 0.8.")
    assert told(stage(level(), 400, ACCURACY[:2])).endswith("with 0.9; the last there is.")


def test_the_best_is_by_the_first_measure_that_can_be_judged():
    unknown = [{"step": 1, "temperature": 3.0, "frechet": 40.0}, {"step": 2, "temperature": 9.0, "frechet": 30.0}]
    one = stage(level(), metrics=unknown)
    assert story.measures(one) == ["temperature", "frechet"]
    assert story.best(one) == story.Best("frechet", 2, 30.0, 30.0)
    assert story.best(one, "temperature") is None
    broken = [{"step": 1, "psnr": 20.0}, {"step": 2, "psnr": float("nan")}, {"step": 3, "psnr": 20.0}, {"step": 4}]
    assert story.best(stage(level(), metrics=broken)) == story.Best("psnr", 1, 20.0, 20.0)
    sides = {"prompt_accuracy": 1, "distance": -1, "frechet_distance": -1, "LPIPS": -1, "diversity": 1, "n": 0}
    assert {name: story.side(name) for name in sides} == sides


def test_a_sound_run_has_no_warnings():
    assert story.warnings(stage(level(), 400, ACCURACY[:2], [verdict(400, "keep", "Sound.")], clip=1.0)) == []
    assert story.warnings(stage(level(50))) == []  # too little to say


def test_a_loss_that_still_falls_and_one_that_never_did():
    falling = np.linspace(1, 0.2, 400) * DRAW.lognormal(0, 0.05, 400)
    (warning,) = story.warnings(stage(falling))
    assert warning.startswith("The loss of student still fell by 2")
    (warning,) = story.warnings(stage(DRAW.lognormal(0, 0.05, 400) + np.linspace(0, 0.3, 400)))
    assert warning.startswith("The loss of student did not fall: 1.0")
    assert story.warnings(stage(falling, names=("student", "critic"))) == []  # there losses say nothing


def test_gradients_that_are_almost_always_clipped():
    (warning,) = story.warnings(stage(level(), norm=3.0, clip=1.0))
    assert warning.startswith("100% of the gradients of student were clipped to 1; their median norm is 3")
    assert story.warnings(stage(level(), norm=3.0)) == []  # it is not known where they are clipped


def test_a_student_that_was_better_before_and_steps_that_slow_down():
    accuracy, distance = story.warnings(stage(level(), metrics=ACCURACY))
    assert accuracy == "By prompt_accuracy the student was better at step 200, 0.9, than at the end, 0.8."
    assert distance.startswith("By distance the student was better at step 200, 0.1")
    (warning,) = story.warnings(stage(level(), seconds=np.linspace(0.1, 1, 400)))
    assert warning.startswith("A step took 0.956 s at the end and 0.234 s")


def test_what_the_guard_saw():
    verdicts = [verdict(5, "back", ""), verdict(9, "back", ""), verdict(12, "go on", "", saturation=0.25)]
    assert story.warnings(stage(level(), guard=verdicts)) == [
        "The guard went back to an earlier step twice, from 5, 9.",
        "Saturated: 25% of the last samples are larger than any of the teacher's.",
    ]
    (warning,) = story.warnings(stage(level(), guard=[verdict(12, "go on", "", within=0.2)]))
    assert warning.startswith("Collapsing: the last samples of one prompt differ 0.20 times")
    (warning,) = story.warnings(stage(level(), guard=[verdict(12, "go on", "", finite=False)]))
    assert warning == "Samples were no longer finite at step 12."


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.1234, "0.123 s"), (42, "42 s"), (59.7, "1 min 0 s"), (440, "7 min 20 s"), (11100, "3 h 5 min")],
)
def test_durations(seconds, text):
    assert story.duration(seconds) == text
