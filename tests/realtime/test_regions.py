"""Chunks of which only what moves is computed after their first step."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from torch import Tensor

from fewstep.errors import InputError
from fewstep.models.window import Chunks
from fewstep.realtime import LiveModel, Session
from fewstep.realtime.rolling import Rolling
from fewstep.techniques import Parallel
from tests.realtime.live import live_model

TOKENS = 4  # of a frame: 16×16 pixels, latents an eighth of that
WHOLE = 0.999  # a share that is rounded up to all of the tokens
FILLED = 2  # chunks after which the window is full


@pytest.fixture(scope="module", params=[Chunks(1, window=3), Chunks(2, window=6, sink=2), Chunks(1)])
def model(request: pytest.FixtureRequest) -> LiveModel:
    return live_model(chunks=request.param)


def rolled(model: LiveModel, share: float, chunks: int, steps: int = 3) -> list[Tensor]:
    """Latents of which the last chunk is computed in part."""
    rolling = Rolling(model, "a red ring", 3)
    made = [rolling.chunk(steps) for _ in range(chunks - 1)]
    rolling.share = share
    return [*made, rolling.chunk(steps)]


def test_all_tokens_are_what_a_whole_chunk_is(model: LiveModel) -> None:
    whole, parts = (rolled(model, share, FILLED + 2)[-1] for share in (1.0, WHOLE))
    torch.testing.assert_close(parts, whole, atol=2e-5, rtol=0)


def test_half_of_the_tokens_stay_and_the_others_move(model: LiveModel) -> None:
    *_, before, whole = rolled(model, 1.0, FILLED + 2)
    part = rolled(model, 0.5, FILLED + 2)[-1]
    still = (part - before[:, :, -1:]).abs().amax(
        1
    ) < 1e-5  # (1, frames, height, width); a token is a latent pixel or 2×2
    assert still.float().mean().item() == pytest.approx(0.5)
    close = (part - whole).abs().amax(1)[~still]  # these differ from a whole chunk by the keys of the still ones alone
    assert close.mean() < (whole - before[:, :, -1:]).abs().amax(1)[~still].mean()


def test_one_call_a_step_of_which_the_first_alone_is_whole(model: LiveModel, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens: list[int] = []
    block = model.pipe.transformer.blocks[0]
    feed_forward = block.ffn.forward
    monkeypatch.setattr(block.ffn, "forward", lambda x: tokens.append(x.shape[1]) or feed_forward(x))
    rolled(model, 0.5, FILLED + 2, steps=3)
    chunk = TOKENS * model.causal.chunks.size
    assert tokens[-3:] == [2 * chunk, chunk // 2, chunk // 2]


def test_nothing_of_it_is_left_in_the_window() -> None:
    """The next chunk is the one that follows upon these latents, however they were made."""
    model = live_model(chunks=Chunks(1))  # in a window with an end chunks remember what is behind it
    rolling = Rolling(model, "a red ring", 3)
    made = [rolling.chunk(3) for _ in range(FILLED + 1)]
    rolling.share = 0.5
    made.append(rolling.chunk(3))
    rolling.share = 1.0
    state = rolling._generator.get_state()
    after = rolling.chunk(3)
    again = Rolling(model, "a red ring", 3)
    again._past.extend(made)
    again._read_anew()
    again._generator.set_state(state)
    torch.testing.assert_close(again.chunk(3), after, atol=2e-5, rtol=0)


def test_all_is_computed_until_the_window_is_full() -> None:
    with Session(live_model(), "a red ring", seed=3, paced=False, off=("adapt",), on=("regions",)) as session:
        chunks = list(islice(session, FILLED + 1))
    assert [chunk.work["share"] for chunk in chunks] == [*[1.0] * FILLED, 0.5]
    parts = np.concatenate([chunk.frames for chunk in chunks[:FILLED]])
    with Session(live_model(), "a red ring", seed=3, paced=False, off=("adapt",)) as session:
        whole = np.concatenate([chunk.frames for chunk in islice(session, FILLED)])
    assert np.array_equal(parts, whole)


def test_the_trick_is_switched_and_told() -> None:
    with Session(live_model(), "a red ring", seed=3, paced=False, off=("adapt",)) as session:
        stream = iter(session)
        assert next(stream).work["share"] == 1.0
        session.switch("regions", True)
        assert next(chunk for chunk in stream if chunk.work["share"] == 0.5).work["steps"] == 4
        assert session.tricks["regions"]


def test_tokens_that_processes_share_are_not_computed_in_part() -> None:
    model = live_model(Parallel(ulysses=2))
    assert model.parts is None
    assert "regions" not in model.tricks
    with pytest.raises(
        InputError, match="'trick' of a live session must be one of window, overlap, choose, adapt, parallel"
    ):
        Session(model, "a red ring", on=("regions",))


def test_a_second_live_model_of_a_pipeline_has_the_same_parts() -> None:
    model = live_model()
    first, second = model.parts, LiveModel.of(model.pipe).parts
    assert first is not None
    assert second is not None
    assert first.sparse is second.sparse
