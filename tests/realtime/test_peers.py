"""A live model on two processes: one has sessions, which show what one process alone shows."""

from __future__ import annotations

import sys
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from fewstep.accelerate import accelerate
from fewstep.errors import InputError, RecipeError
from fewstep.realtime import LiveModel, Session
from fewstep.realtime.peers import together
from fewstep.techniques import Parallel, Technique
from fewstep.techniques.parallel.processes import joined
from tests.distill.processes import start
from tests.realtime.live import live_model

CHUNKS = 6
WIDE = 32  # pixels: a frame has more tokens than an opening has candidates, or one would be taken for the other


def _shown(model: LiveModel) -> np.ndarray:
    """Two sessions, one after the other, the second without overlap."""
    with Session(model, "a red ring", seed=3, paced=False, off=("adapt",)) as session:
        frames = [chunk.frames for chunk in islice(session, CHUNKS)]
    with Session(model, "a blue square", seed=4, paced=False, off=("adapt", "overlap")) as session:
        frames += [chunk.frames for chunk in islice(session, 1)]
    return np.concatenate(frames)


def _steered(model: LiveModel) -> None:
    """Another prompt comes, and techniques go and come back."""
    with Session(model, "a red ring", seed=3, paced=False) as session:
        chunks = iter(session)
        next(chunks)
        session.prompt("a green star")
        if "parallel" in session.tricks:
            session.switch("parallel", False)
        assert next(chunk for chunk in chunks if chunk.prompt == "a green star").frames.any()
        if "parallel" in session.tricks:
            session.switch("parallel", True)
        list(islice(chunks, 8))


def _live(rank: int) -> None:
    torch.manual_seed(rank)  # processes that torchrun starts draw other numbers where nobody gives a generator
    plain = _shown(live_model(width=WIDE)) if rank == 0 else None
    with joined():
        for parallel in (Parallel(ulysses=2), Parallel(tensor=2)):
            with together(live_model(parallel, width=WIDE)) as model:
                assert (model is None) == (rank == 1)
                if model is not None:
                    assert plain is not None
                    assert np.abs(_shown(model).astype(int) - plain.astype(int)).max() <= 1
                    _steered(model)


def test_sessions_on_two_processes_show_what_one_shows() -> None:
    start(_live, 2)


def _clip(rank: int) -> None:
    """A causal student's whole clip, under its mask."""
    pipe = live_model(width=WIDE).pipe

    def call(pipe: Any) -> torch.Tensor:
        torch.manual_seed(1)  # diffusers' scheduler noises anew from these, whatever the call's generator
        made: torch.Tensor = pipe("a red ring", output_type="latent", generator=torch.Generator().manual_seed(1)).frames
        return made

    plain = call(pipe)
    with joined():
        fast = accelerate(pipe, Parallel(ulysses=2))
        for _ in range(2):  # the first one learns
            assert float((call(fast) - plain).abs().max()) <= 1e-5 * max(1.0, float(plain.abs().max()))


def test_a_causal_clip_on_two_processes_is_that_of_one() -> None:
    start(_clip, 2)


def _refused(rank: int) -> None:
    with joined():
        techniques: list[tuple[Technique, ...]] = [(), (Parallel(auto=True),), (Parallel(ulysses=2, vae=2),)]
        for some, said in zip(techniques, ("nothing to share", "without 'vae'", "without 'vae'"), strict=True):
            with pytest.raises(InputError, match=said), together(live_model(*some)):
                pass
        model = live_model(Parallel(ring=2), width=WIDE)
        with pytest.raises(RecipeError, match="keeps its past in a window, which no ring passes on"):
            model.put_on(frozenset({"parallel"}))


def test_what_a_live_model_can_not_share_is_refused() -> None:
    start(_refused, 2)


def _ends(rank: int) -> None:
    with joined(), together(live_model(Parallel(ulysses=2), width=WIDE)) as model:
        if model is not None:
            with Session(model, "a red ring", seed=3, paced=False) as session:
                list(islice(session, 2))
            sys.exit(7)  # in the block: the other one must not wait for ever


def test_the_others_end_with_the_first() -> None:
    with pytest.raises(Exception, match="exit code 7"):
        start(_ends, 2, seconds=60)


def _fails(rank: int) -> None:
    with joined(), together(live_model(Parallel(ulysses=2), width=WIDE)) as model:
        if model is not None:
            with Session(model, "a red ring", seed=3, paced=False) as session:
                next(iter(session))
                model.noise = lambda generator: 1 / 0  # type: ignore[method-assign, assignment, return-value]
                list(session)


def test_what_goes_wrong_on_the_first_alone_ends_both() -> None:
    with pytest.raises(Exception, match="The live session ended: division by zero"):
        start(_fails, 2, seconds=60)


def test_one_process_alone_has_its_model() -> None:
    model = live_model(width=WIDE)
    with together(model) as same:
        assert same is model
