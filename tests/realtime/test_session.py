"""Sessions on a tiny live model: what comes out, in what order, and that nothing waits for a slow viewer."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from itertools import islice, pairwise

import numpy as np
import pytest
import torch

from fewstep.diffusion.schedule import Time
from fewstep.errors import FewstepError, InputError
from fewstep.realtime import LiveModel, Session
from fewstep.realtime.decode import StreamDecoder, to_bytes
from fewstep.realtime.rolling import Rolling
from fewstep.techniques import Compile, Precision
from tests.distill.pipes import video_pipeline
from tests.realtime.live import live_model
from tests.techniques.tiny import no_codegen


@pytest.fixture(scope="module")
def model() -> LiveModel:
    return live_model()


def frames(model: LiveModel, n: int, seed: int = 3, **options: object) -> np.ndarray:
    off = ("adapt", "choose")
    with Session(model, "a red ring", seed=seed, paced=False, off=off, **options) as session:  # type: ignore[arg-type]
        return np.concatenate([chunk.frames for chunk in islice(session, n)])


def test_a_session_shows_what_rolling_and_decoding_give(model: LiveModel) -> None:
    made = frames(model, 6)
    rolling = Rolling(model, "a red ring", 3)
    decoder = StreamDecoder(model.pipe.vae)
    alone = np.concatenate([to_bytes(decoder(rolling.chunk(4))) for _ in range(6)])
    assert made.shape == (1 + 5 * 4, 16, 16, 3)
    assert np.abs(made.astype(int) - alone.astype(int)).max() <= 1  # another number of threads rounds otherwise


def test_the_past_computed_anew_is_the_past_that_was_kept(model: LiveModel) -> None:
    """All but what the window's oldest chunk had seen itself, which is nothing while the window is not full."""
    chunks = 3
    kept = frames(model, chunks)
    rolling = Rolling(model, "a red ring", 3)
    rolling.cached = False
    decoder = StreamDecoder(model.pipe.vae)
    anew = np.concatenate([to_bytes(decoder(rolling.chunk(4))) for _ in range(chunks)])
    assert np.abs(kept.astype(int) - anew.astype(int)).max() <= 1


def test_indices_go_on_and_frames_are_due_evenly(model: LiveModel) -> None:
    with Session(model, "a red ring", fps=16, seed=0, paced=False) as session:
        chunks = list(islice(session, 4))
    assert [chunk.index for chunk in chunks] == [0, 1, 5, 9]
    assert [chunk.due for chunk in chunks] == [0.0, *(pytest.approx(0.25 + n / 16) for n in (1, 5, 9))]
    assert {"steps", "denoise_ms", "decode_ms", "window_mb"} <= chunks[0].work.keys()


def test_another_prompt_follows_and_a_cut_forgets(model: LiveModel) -> None:
    for how, sizes in (("recache", {4}), ("cut", {1, 4})):
        with Session(model, "a red ring", seed=0, paced=False, on_prompt=how) as session:  # type: ignore[arg-type]
            stream = iter(session)
            next(stream)
            session.prompt("a blue square")
            chunks = list(islice(stream, 12))
        turned = next(i for i, chunk in enumerate(chunks) if chunk.prompt == "a blue square")
        assert all(chunk.prompt == "a blue square" for chunk in chunks[turned:])
        assert {len(chunk.frames) for chunk in chunks[turned:]} == sizes
        indices = [chunk.index for chunk in chunks]
        assert indices == list(np.cumsum([indices[0], *(len(chunk.frames) for chunk in chunks[:-1])]))


def test_the_prompt_changes_what_is_seen(model: LiveModel) -> None:
    assert not np.array_equal(frames(model, 3), frames(model, 3, seed=4))
    with Session(model, "two circles", seed=3, paced=False, off=("adapt", "choose")) as session:
        other = np.concatenate([chunk.frames for chunk in islice(session, 3)])
    assert not np.array_equal(frames(model, 3), other)


def test_two_sessions_at_once_do_not_disturb_each_other(model: LiveModel) -> None:
    alone = [frames(model, 5, seed=seed) for seed in (1, 2)]
    both: dict[int, np.ndarray] = {}

    def run(seed: int) -> None:
        both[seed] = frames(model, 5, seed=seed)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(alone[seed - 1], both[seed]) for seed in (1, 2))


def test_a_viewer_who_takes_nothing_loses_frames_and_holds_up_nothing(model: LiveModel) -> None:
    with Session(model, "a red ring", fps=240, seed=0) as session:
        deadline = time.monotonic() + 20
        while session.stats.dropped < 8 and time.monotonic() < deadline:
            time.sleep(0.02)
        stats = session.stats
        first = next(iter(session))
    assert stats.dropped >= 8
    assert stats.frames - stats.dropped <= 4 * 4
    assert first.index > 0


def test_a_paced_session_does_no_more_work_than_its_clock_asks_for(model: LiveModel) -> None:
    with Session(model, "a red ring", fps=8, seed=0) as session:
        stream = iter(session)
        next(stream)
        time.sleep(1.0)
        assert session.stats.frames <= 1 + 8 * 1.0 + 4 * 4
        assert session.stats.missed == 0


@pytest.mark.usefixtures("able_machine")
def test_tricks_are_switched_and_unknown_ones_named() -> None:
    model = live_model(Precision())
    dtype = model.pipe.transformer.blocks[0].attn1.to_q.weight.dtype
    with Session(model, "a red ring", seed=0, paced=False) as session:
        own = {"window": True, "overlap": True, "choose": True, "regions": False, "adapt": True}
        assert session.tricks == {**own, "precision": True}
        assert model.pipe.transformer.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
        stream = iter(session)
        next(stream)
        for trick in session.tricks:
            session.switch(trick, False)
        next(stream)
        assert not any(session.tricks.values())
        with pytest.raises(InputError, match="'trick' of a live session must be one of window, overlap"):
            session.switch("magic", True)
    assert model.pipe.transformer.blocks[0].attn1.to_q.weight.dtype == dtype


def test_the_small_decoder_is_switched_in_mid_stream() -> None:
    model = live_model(small=True)
    with Session(
        model, "a red ring", seed=3, paced=False, off=("adapt", "choose", "overlap", "small_decoder")
    ) as session:
        stream = iter(session)
        kept = [next(stream).frames for _ in range(3)]
        session.switch("small_decoder", True)
        small = [next(stream).frames for _ in range(6)][-1]
        session.switch("small_decoder", False)
        again = [next(stream).frames for _ in range(6)]
    plain = frames(live_model(), 15)
    assert np.abs(np.concatenate(kept).astype(int) - plain[:9].astype(int)).max() <= 1
    assert small.shape == again[-1].shape == (4, 16, 16, 3)
    far, near = (np.abs(a.astype(int) - b).mean() for a, b in ((small, plain[29:33]), (again[-1], plain[-4:])))
    assert near < far / 3  # it was never trained; the VAE's own misses some of the past


def test_compiled_blocks_are_one_graph_whatever_the_window_holds() -> None:
    model = live_model(Compile())
    with no_codegen(), Session(model, "a red ring", seed=3, paced=False, off=("adapt", "choose")) as session:
        stream = iter(session)
        made = [next(stream).frames]
        facts = model.engaged["compile"].facts
        graphs = facts["graphs"]
        made += [chunk.frames for chunk in islice(stream, 6)]
        session.switch("regions", True)
        assert next(chunk for chunk in stream if chunk.work["share"] == 0.5).frames.any()
        session.prompt("a blue square")
        assert next(chunk for chunk in stream if chunk.prompt == "a blue square").frames.any()
    # Of a chunk, of a part of it, of one behind the one before it, and of several openings.
    assert facts["graphs"] == graphs <= 4
    alone = frames(live_model(), 7)
    assert np.abs(np.concatenate(made).astype(int) - alone.astype(int)).max() <= 1


@pytest.mark.slow
def test_compiled_blocks_show_what_eager_ones_show() -> None:
    """With generated code, which uses memory again: nothing of the window may lie in it."""
    with Session(live_model(Compile()), "a red ring", seed=3, paced=False, off=("adapt", "choose")) as session:
        made = np.concatenate([chunk.frames for chunk in islice(session, 7)])
    assert np.abs(made.astype(int) - frames(live_model(), 7).astype(int)).max() <= 2


def test_a_failure_reaches_who_iterates_and_ends_the_threads(model: LiveModel, monkeypatch) -> None:
    session = Session(model, "a red ring", seed=0, paced=False)
    stream = iter(session)
    next(stream)
    monkeypatch.setattr(session._rolling, "chunk", lambda steps: 1 / 0)
    with pytest.raises(FewstepError, match="The live session ended: division by zero"):
        for _ in range(20):
            next(stream)
    session.close()
    assert not any(thread.is_alive() for thread in session._threads)


def test_closing_ends_an_iteration_that_waits(model: LiveModel) -> None:
    session = Session(model, "a red ring", fps=1, seed=0)
    taken: list[int] = []
    reader = threading.Thread(target=lambda: taken.extend(chunk.index for chunk in session))
    reader.start()
    time.sleep(0.3)
    session.close()
    reader.join(timeout=5)
    assert not reader.is_alive()
    session.close()


def test_values_that_fit_nothing_are_refused(model: LiveModel) -> None:
    for options, word in (
        ({"fps": 0}, "fps"),
        ({"steps": 5}, "steps"),
        ({"on_prompt": "jump"}, "on_prompt"),
        ({"off": ("magic",)}, "trick"),
    ):
        with pytest.raises(InputError, match=word):
            Session(model, "a red ring", **options)  # type: ignore[arg-type]
    for prompt in ("", "  ", 3):
        with pytest.raises(InputError, match="prompt"):
            Session(model, prompt)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="tiny video is no live model"):
        LiveModel.of(video_pipeline())


def test_a_clock_that_can_not_be_kept_is_slowed_down_and_says_so(model: LiveModel) -> None:
    with Session(model, "a red ring", fps=64, seed=0) as session:
        chunk_of = session._rolling.chunk

        def slow(steps: int) -> torch.Tensor:
            time.sleep(0.1)  # four frames at 64 a second have 0.06 s
            return chunk_of(steps)

        session._rolling.chunk = slow  # type: ignore[method-assign]
        chunks = list(islice(session, 24))
        assert "frames a second" in session.stats.said
    paces = [float(chunk.work["fps"]) for chunk in chunks]
    assert paces[0] == 64
    assert min(paces) < 64
    for before, after in pairwise(chunks[1:]):
        if after.index == before.index + 4 and before.work["fps"] == after.work["fps"]:
            assert after.due - before.due == pytest.approx(4 / float(after.work["fps"]))


def test_a_chunk_takes_a_call_a_step_and_one_without_a_past_twice_as_many() -> None:
    """What came before is read in the first of them, at a time of its own: the end."""
    model = live_model()
    asked: list[Sequence[float]] = []
    denoise = model.denoiser.__class__.__call__

    class Counted(model.denoiser.__class__):  # type: ignore[misc,name-defined]
        def __call__(self, x: torch.Tensor, t: Time, cond: object = None) -> torch.Tensor:
            asked.append(torch.as_tensor(t).flatten().tolist())
            return denoise(self, x, t, cond)

    object.__setattr__(model, "denoiser", Counted(**vars(model.denoiser)))
    rolling = Rolling(model, "a red ring", 3)

    def calls(steps: int) -> list[Sequence[float]]:
        asked.clear()
        rolling.chunk(steps)
        return [pytest.approx(times) for times in asked]

    end, behind = 0.0, model.times(2)[:-1]
    assert calls(2) == [[t] for t in model.opening[:-1]]
    assert calls(2) == [[end, behind[0]], *([t] for t in behind[1:])]
    assert calls(1) == [[end, 1.0]]
    rolling.turn("a blue cross", "cut")
    assert calls(1) == [[t] for t in model.opening[:-1]]
    rolling.turn("a red ring", "recache")
    assert calls(1) == [[end, 1.0]]
