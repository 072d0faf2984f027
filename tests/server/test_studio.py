"""The live part of a server on a tiny causal student."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from fewstep.distill.decoder import small_decoder
from fewstep.errors import InputError
from fewstep.models.load import SMALL_DECODER, load
from fewstep.realtime import LiveModel
from fewstep.realtime.told import Chunk
from fewstep.server.config import ModelEntry
from fewstep.server.engine import Engine
from fewstep.server.live import Busy
from fewstep.server.studio import LiveSession, LiveStudio
from fewstep.zoo.moving.render import render
from fewstep.zoo.tasks import task
from tests.server.live.student import save_student

pytestmark = pytest.mark.usefixtures("able_machine")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_student(tmp_path_factory.mktemp("live") / "tiny")


@pytest.fixture
def studio(folder: Path) -> LiveStudio:
    engine = Engine((ModelEntry(name="tiny", model=str(folder), fps=20, recipe=["precision"]),))
    engine.load()
    assert engine.live_entry is not None
    return LiveStudio(engine.live_entry, engine.techniques, engine.live.result, most=2)


def test_the_page_is_told_of_every_trick_that_its_session_has(folder: Path, tmp_path: Path) -> None:
    """A small decoder in the model's folder among them: a switch that is not there would stop the page."""
    with_small = tmp_path / "with-small"
    shutil.copytree(folder, with_small)
    for place, has in ((folder, False), (with_small, True)):
        if has:
            small_decoder(load(place), width=8).save_pretrained(place / SMALL_DECODER)
        engine = Engine((ModelEntry(name="tiny", model=str(place), recipe=["precision"]),))
        engine.load()
        assert engine.live_entry is not None
        studio = LiveStudio(engine.live_entry, engine.techniques, engine.live.result, most=1)
        assert (SMALL_DECODER in studio.tricks) is has
        live = studio.open("a red ring", seed=0)
        assert live.tricks.keys() == studio.tricks.keys()
        live.close()


def test_viewers_get_sessions_of_their_own_until_there_are_too_many(studio: LiveStudio) -> None:
    assert studio.tricks.keys() == {"window", "overlap", "choose", "regions", "adapt", "precision"}
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
    with pytest.raises(InputError, match="prompt"):
        studio.open(" ", seed=3)  # and the place is free again
    studio.open("a red ring", seed=3).close()
    second.close()
    assert studio.teacher("a red ring", seed=0) is None


def not_asked() -> LiveModel:
    raise AssertionError("the model is not needed here")


def test_viewers_who_come_at_once_are_counted_too(studio: LiveStudio) -> None:
    def come(seed: int) -> LiveSession | None:
        try:
            return studio.open("a red ring", seed=seed)
        except Busy:
            return None

    with ThreadPoolExecutor(6) as pool:
        lives = [live for live in pool.map(come, range(6)) if live is not None]
    assert len(lives) == studio.most
    for live in lives:
        live.close()
        live.close()
    assert not studio._taken


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
    studio = LiveStudio(ModelEntry(name="zoo:moving-shapes-live", model="zoo:shapes"), (), not_asked)
    assert 3 <= len(studio.examples) <= 6
    judge = studio._judge(studio.examples[0])
    assert judge is not None
    assert studio._judge("something of one's own") is None
    studio.__dict__["_asks"] = {"it": ask, text: ask}
    live = LiveSession(Drawn(right, np.zeros_like(right)), studio._judge, lambda: None)  # type: ignore[arg-type]
    list(live)
    assert live._right[0] is True
    assert live._right[-1] is False
