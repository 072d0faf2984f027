"""The live part of a server on a tiny causal student."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from fewstep.errors import InputError
from fewstep.realtime.session import Chunk
from fewstep.server.config import ModelEntry
from fewstep.server.live import Busy
from fewstep.server.studio import LiveSession, LiveStudio, live_entry
from fewstep.techniques import Precision
from fewstep.zoo.moving.render import render
from fewstep.zoo.tasks import task
from tests.realtime.live import live_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = live_model()
    place = tmp_path_factory.mktemp("live") / "tiny"
    model.pipe.save_pretrained(place)
    replace(model.manifest, causal={"size": 1, "window": 3, "sink": 0}, teacher=None).write(place)
    return place


@pytest.fixture
def studio(folder: Path, monkeypatch: pytest.MonkeyPatch) -> LiveStudio:
    made = LiveStudio(ModelEntry(name="tiny", model=str(folder), fps=20), most=2)
    made.__dict__["_techniques"] = (Precision(),)  # compiling takes a minute
    return made


def test_the_live_model_is_found_by_its_manifest(folder: Path) -> None:
    entries = (ModelEntry(name="shapes", model="zoo:shapes"), ModelEntry(name="tiny", model=str(folder)))
    assert live_entry(entries) is entries[1]
    assert live_entry(entries[:1]) is None
    assert live_entry((ModelEntry(name="far", model="owner/name"),)) is None


def test_viewers_get_sessions_of_their_own_until_there_are_too_many(studio: LiveStudio) -> None:
    assert studio.tricks.keys() == {"window", "overlap", "adapt", "precision"}
    assert studio.examples == ()
    first, second = (studio.open("a red ring", seed=seed) for seed in (0, 1))
    with pytest.raises(Busy, match="2 viewers already"):
        studio.open("a red ring", seed=2)
    chunks = [np.concatenate([chunk.frames for chunk in islice(live, 3)]) for live in (first, second)]
    assert not np.array_equal(*chunks)
    first.prompt("a blue square")
    first.switch("overlap", False)
    assert (first.tricks["overlap"], second.tricks["overlap"]) == (False, True)
    stats = first.stats()
    assert stats["accuracy"] is None
    assert {"fps", "first_frame_s", "jitter_ms", "missed", "steps"} <= stats.keys()
    with pytest.raises(InputError, match="prompt"):
        first.prompt("")
    first.close()
    studio.open("a red ring", seed=3).close()
    second.close()
    assert studio.teacher("a red ring", seed=0) is None


class Drawn:
    """A session that shows what was asked for, and then something else."""

    def __init__(self, frames: np.ndarray, other: np.ndarray) -> None:
        both = [*np.split(frames, 17), *np.split(other, 17)]
        self.chunks = [Chunk(one, i, "it", i / 4, {}) for i, one in enumerate(both)]

    def __iter__(self):
        return iter(self.chunks)


def test_the_oracle_judges_what_is_shown() -> None:
    moving = task("moving-shapes")
    (text, ask), *_ = [one for one in moving.prompts(20, 3) if moving.single(one[1])]
    scene = moving.parts.sample_answer(ask, np.random.default_rng(0))
    right = (255 * render(scene, 17)).astype(np.uint8)
    studio = LiveStudio(ModelEntry(name="zoo:moving-shapes-live", model="zoo:shapes"))
    assert 3 <= len(studio.examples) <= 6
    judge = studio._judge(studio.examples[0])
    assert judge is not None
    assert studio._judge("something of one's own") is None
    studio.__dict__["_asks"] = {"it": ask, text: ask}
    live = LiveSession(Drawn(right, np.zeros_like(right)), studio._judge, lambda closed: None)  # type: ignore[arg-type]
    list(live)
    assert live._right[0] is True
    assert live._right[-1] is False
