"""Live video as a viewer sees it: the clock of the display, and the oracle over a stream."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest

from fewstep.bench.live import Kept, drift, kept, show, throughput, watch
from fewstep.realtime import Session
from fewstep.realtime.told import Chunk
from fewstep.zoo.moving.render import render
from fewstep.zoo.tasks import task
from tests.realtime.live import live_model


def chunks(lateness: float = 0.0) -> Iterator[Chunk]:
    """One frame, and then four at a time, at 100 frames a second; the third chunk comes late."""
    start = time.monotonic()
    for index, count in ((0, 1), (1, 4), (5, 4), (9, 4)):
        due = 0.0 if index == 0 else (4 + index) / 100
        time.sleep(max(0.0, start + due - 0.03 - time.monotonic()) + (lateness if index == 5 else 0.0))
        yield Chunk(np.zeros((count, 2, 2, 3), np.uint8), index, "a", due, {"steps": 4})


def test_frames_are_shown_when_they_are_due() -> None:
    shown = show(chunks(), fps=100, seconds=0.15)
    assert len(shown.times) == 13
    assert shown.steps == [4.0] * 4
    assert shown.missed == 0
    gaps = np.diff(shown.times[1:])
    assert np.median(gaps) == pytest.approx(0.01, abs=0.003)
    assert shown.times[1] - shown.times[0] == pytest.approx(0.05, abs=0.02)


def test_a_late_chunk_makes_one_long_interval_and_moves_all_after_it() -> None:
    shown = show(chunks(lateness=0.2), fps=100, seconds=1)
    assert shown.missed == 1
    gaps = np.diff(shown.times[1:])
    assert (gaps > 0.1).sum() == 1
    assert np.argmax(gaps) == 3


def test_a_viewer_of_a_real_session() -> None:
    model = live_model()
    seen = watch(Session(model, "a red ring", fps=20, seed=0), seconds=1.0)
    assert seen.frames >= 17
    assert seen.seconds >= 1.0
    assert seen.fps == pytest.approx(20, rel=0.2)
    assert 1 <= seen.steps <= 4
    assert throughput(model, "a red ring", 0.3, off=("adapt",)) > 20


def test_what_a_stream_shows_is_judged_from_its_beginning_to_its_end(monkeypatch) -> None:
    moving = task("moving-shapes")
    asked = moving.prompts(3, 5)

    def drawn(model, text, text_after, frames, frames_after, seed, options):
        ask, ask_after = (next(a for t, a in asked if t == one) for one in (text, text_after))
        scenes = [moving.parts.sample_answer(one, np.random.default_rng(seed)) for one in (ask, ask_after)]
        first, after = (render(scene, n) for scene, n in zip(scenes, (frames, frames_after + 17), strict=True))
        first[frames // 2 :] *= forgets
        return first.astype(np.float32), after.astype(np.float32)

    monkeypatch.setattr("fewstep.bench.live._video", drawn)
    forgets = 1.0
    good = kept(live_model(), asked, seconds=12)
    assert good == Kept(1.0, 1.0, 1.0, 1.0)
    assert drift(good) == 1.0
    forgets = 0.0
    assert kept(live_model(), asked, seconds=12) == Kept(1.0, 1.0, 0.0, 1.0)
