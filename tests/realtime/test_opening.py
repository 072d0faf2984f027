"""The first chunk of a prompt, of several."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from fewstep.diffusion.analytic import GaussianMixture
from fewstep.diffusion.samplers import renoise
from fewstep.diffusion.schedule import Schedule
from fewstep.realtime import Session
from fewstep.realtime.opening import CANDIDATES, best
from fewstep.realtime.rolling import Rolling
from tests.realtime.live import live_model


@pytest.mark.parametrize("asked", range(5))
def test_the_one_that_answers_is_chosen(asked: int) -> None:
    """Exactly: of samples of five Gaussians, the one of the Gaussian that was asked for."""
    means = torch.eye(5, 12)
    mixture = GaussianMixture(means, torch.full((5,), 0.1), torch.full((5,), 0.2))
    denoiser = mixture.denoiser(Schedule.flow())
    chunks = means + 0.1 * torch.randn(means.shape, generator=torch.Generator().manual_seed(asked))
    told = torch.full((5,), asked)
    found = best(denoiser, chunks, told, None, torch.Generator().manual_seed(7))
    torch.testing.assert_close(found, chunks[asked][None])


def test_an_opening_is_one_of_its_candidates_and_a_seed_is_a_video() -> None:
    model = live_model()
    made = []
    for _ in range(2):
        rolling = Rolling(model, "a red ring", 3)
        rolling.candidates = CANDIDATES
        made.append([rolling.chunk(3) for _ in range(3)])
    assert all(torch.equal(one, other) for one, other in zip(*made, strict=True))
    opening, *after = made[0]
    assert {chunk.shape for chunk in after} == {opening.shape}
    assert len(opening) == 1

    rolling = Rolling(model, "a red ring", 3)
    generator = torch.Generator().manual_seed(3)
    noise = torch.cat([model.noise(generator) for _ in range(CANDIDATES)])
    with torch.no_grad():
        candidates = renoise(rolling, noise, model.opening, rolling.cond, generator=generator)
    assert sum(torch.allclose(opening[0], one, atol=1e-5) for one in candidates) == 1


def test_a_session_chooses_unless_it_is_told_not_to() -> None:
    model = live_model()
    with Session(model, "a red ring", seed=3, paced=False, off=("adapt",)) as session:
        stream = iter(session)

        def opening_of(prompt: str) -> float:
            return next(float(chunk.work["candidates"]) for chunk in stream if chunk.prompt == prompt)

        assert opening_of("a red ring") == CANDIDATES
        for prompt, on, candidates in (("a blue disc", False, 1), ("a green cross", True, CANDIDATES)):
            session.switch("choose", on)
            session.prompt(prompt)
            assert opening_of(prompt) == candidates


def test_a_viewer_is_told_what_an_opening_took() -> None:
    model = live_model()
    with Session(model, "a red ring", seed=3, paced=False, off=("adapt",)) as session:
        steps = [chunk.work["steps"] for chunk in islice(session, 3)]
    assert steps == [2 * model.steps, model.steps, model.steps]
