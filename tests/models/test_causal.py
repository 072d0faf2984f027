"""A causal video transformer: masked over all frames, or chunk by chunk with a window, it is one function."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from diffusers import FluxTransformer2DModel, WanTransformer3DModel
from torch import Tensor

from fewstep.errors import InputError
from fewstep.models.causal import causal_of, make_causal
from fewstep.models.window import Chunks, Window, rotated

TEXT = 5


def transformer(seed: int = 0, patch: tuple[int, int, int] = (1, 2, 2)) -> WanTransformer3DModel:
    torch.manual_seed(seed)
    return WanTransformer3DModel(
        patch_size=patch,
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=16,
    ).eval()


def clip(frames: int, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """x_t, the time of each frame, and the text."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 4, frames, 4, 6, generator=generator)
    return x, 1000 * torch.rand(2, frames, generator=generator), torch.randn(2, TEXT, 16, generator=generator)


@torch.no_grad()
def run(model: WanTransformer3DModel, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
    out: Tensor = model(hidden_states=x, timestep=t, encoder_hidden_states=text, return_dict=False)[0]
    return out


@pytest.mark.parametrize(
    "chunks", [Chunks(), Chunks(2), Chunks(1, window=3), Chunks(2, window=4), Chunks(1, window=3, sink=1)]
)
def test_chunk_by_chunk_is_the_masked_whole(chunks: Chunks) -> None:
    frames = 4 if chunks.sink else 8  # with a sink, only until the first frame leaves the window
    frames = min(frames, chunks.window or frames) if chunks.sink else frames
    model, (x, t, text) = transformer(), clip(frames)
    causal = make_causal(model, chunks)
    whole, window, parts = run(model, x, t, text), Window(chunks), []
    for start in range(0, frames, chunks.size):
        part = slice(start, start + chunks.size)
        with causal.after(window):
            parts.append(run(model, x[:, :, part], t[:, part], text))
        with causal.after(window, keep=chunks.size):
            run(model, x[:, :, part], t[:, part], text)
    assert torch.allclose(torch.cat(parts, 2), whole, atol=1e-5)
    assert window.frames == min(frames, (chunks.window or frames + chunks.size) - chunks.size)


@pytest.mark.parametrize("chunks", [Chunks(), Chunks(2), Chunks(1, window=3), Chunks(2, window=4)])
def test_a_clip_beside_itself_is_what_comes_after_a_window_of_it(chunks: Chunks) -> None:
    """All chunks at once, each after the known past, are what they are one by one; the past sees nothing of them."""
    model, (past, t, text), (x, _, _) = transformer(), clip(8), clip(8, seed=2)
    causal, window, parts, end = make_causal(model, chunks), Window(chunks), [], torch.zeros_like(t)
    with causal.beside():
        both = run(model, torch.cat([past, x], 2), torch.cat([end, t], 1), text)
    for start in range(0, 8, chunks.size):
        part = slice(start, start + chunks.size)
        with causal.after(window):
            parts.append(run(model, x[:, :, part], t[:, part], text))
        with causal.after(window, keep=chunks.size):
            run(model, past[:, :, part], end[:, part], text)
    assert torch.allclose(both[:, :, 8:], torch.cat(parts, 2), atol=1e-5)
    assert torch.allclose(both[:, :, :8], run(model, past, end, text), atol=1e-5)


@pytest.mark.parametrize(
    "chunks",
    [Chunks(), Chunks(2), Chunks(1, window=1), Chunks(1, window=3), Chunks(2, window=4), Chunks(1, window=3, sink=1)],
)
def test_a_chunk_that_is_kept_in_the_call_of_the_next_one_is_as_in_a_call_of_its_own(chunks: Chunks) -> None:
    model, (past, t, text), (x, _, _) = transformer(), clip(12), clip(12, seed=2)
    causal, apart, together = make_causal(model, chunks), Window(chunks), Window(chunks)
    end = torch.zeros_like(t)
    for start in range(0, 12 - chunks.size, chunks.size):
        known, asked = slice(start, start + chunks.size), slice(start + chunks.size, start + 2 * chunks.size)
        with causal.after(apart, keep=chunks.size):
            kept = run(model, past[:, :, known], end[:, known], text)
        with causal.after(apart):
            answer = run(model, x[:, :, asked], t[:, asked], text)
        both, times = torch.cat([past[:, :, known], x[:, :, asked]], 2), torch.cat([end[:, known], t[:, asked]], 1)
        with causal.after(together, keep=chunks.size):
            found = run(model, both, times, text)
        assert torch.allclose(found, torch.cat([kept, answer], 2), atol=1e-5), start
        assert together.frames == apart.frames
        assert together.bytes == apart.bytes or chunks.window is None  # those of rows that grow, sooner or later


def test_a_later_frame_changes_no_earlier_one_and_a_far_one_is_not_seen() -> None:
    model, (x, t, text) = transformer(), clip(8)
    make_causal(model, Chunks(2, window=4))
    other = x.clone()
    other[:, :, 4:6] += 1
    before, after = run(model, x, t, text), run(model, other, t, text)
    apart = (before - after).abs().amax((0, 1, 3, 4)) > 1e-6
    assert apart.tolist() == [False] * 4 + [True] * 4
    other = x.clone()
    other[:, :, :2] += 1
    model = transformer()
    make_causal(model, Chunks(2, window=2))
    apart = (run(model, x, t, text) - run(model, other, t, text)).abs().amax((0, 1, 3, 4)) > 1e-6
    assert apart.tolist() == [True] * 2 + [False] * 6


def test_a_window_that_rolls_is_at_the_same_distance_for_ever() -> None:
    """More chunks than the rotary table has places: the last ones see what they would see at the beginning."""
    chunks = Chunks(1, window=3)
    model = transformer()
    causal, window = make_causal(model, chunks), Window(chunks)
    x, t, text = clip(40)
    for frame in range(40):
        with causal.after(window, keep=1):
            last = run(model, x[:, :, frame : frame + 1], t[:, frame : frame + 1], text)
    # Two layers see twice as far back: a run over the last five frames gives the same last one.
    short = run(model, x[:, :, -5:], t[:, -5:], text)[:, :, -1:]
    assert torch.allclose(last, short, atol=1e-4)


def test_a_sink_stays_and_all_others_go() -> None:
    chunks = Chunks(1, window=3, sink=1)
    model = transformer()
    causal = make_causal(model, chunks)

    def last(x: Tensor) -> Tensor:
        window = Window(chunks)
        for frame in range(x.shape[2]):
            with causal.after(window, keep=1):
                out = run(model, x[:, :, frame : frame + 1], t[:, frame : frame + 1], text)
        return out

    x, t, text = clip(8)
    plain = last(x)
    for frame, seen in ((0, True), (1, False), (2, False), (7, True)):
        other = x.clone()
        other[:, :, frame] += 1
        assert (float((last(other) - plain).abs().max()) > 1e-6) is seen, frame


@pytest.mark.parametrize(
    "chunks",
    [Chunks(), Chunks(2), Chunks(1, window=1), Chunks(1, window=4), Chunks(2, window=6), Chunks(2, window=8, sink=4)],
)
def test_a_window_holds_the_newest_frames_and_the_sink_each_turned_to_its_place(chunks: Chunks) -> None:
    """However far a row is written, and however often it moved: one key a frame, turned by its place from the first."""
    draw, turn = torch.Generator().manual_seed(0), torch.polar(torch.ones(1, 1, 1, 3), torch.tensor([1.0, 0.3, 0.01]))
    window, seen, places = Window(chunks, back=turn**-chunks.size), [], []

    def turned(keys: list[Tensor], start: int) -> Tensor:
        return torch.cat([rotated(key, turn ** (start + place)) for place, key in enumerate(keys)], 1)

    for _ in range(12):
        own = list(torch.randn(chunks.size, 1, 1, 2, 6, generator=draw))
        most = len(seen) if chunks.window is None else chunks.window - chunks.size
        newest = min(most - chunks.sink, max(0, len(seen) - chunks.sink))
        held = seen[: chunks.sink] + (seen[-newest:] if newest else [])
        window.begin()
        window.make_room(2 * chunks.size)
        assert window.frames == len(held)
        key, value = turned(own, window.end), torch.cat(own, 1)
        with torch.no_grad():
            keys, values = window.joined(("a", 0), key, value)
        torch.testing.assert_close(keys, turned(held + own, window.start), rtol=0, atol=2e-5)
        assert torch.equal(values, torch.cat(held + own, 1))
        window.note(("a", 0), key, value, 1)
        window.advance(chunks.size)
        seen += own
        places.append(window.start)
    went_back = any(later < earlier for earlier, later in pairwise(places))
    assert went_back is (chunks.window is not None)


def test_one_time_for_all_frames_is_that_time_for_each() -> None:
    model, (x, t, text) = transformer(), clip(3)
    make_causal(model, Chunks())
    assert torch.allclose(run(model, x, t[:, 0], text), run(model, x, t[:, :1].expand(-1, 3), text), atol=1e-5)


def test_a_deep_copy_is_causal_with_weights_of_its_own() -> None:
    model, (x, t, text) = transformer(), clip(4)
    causal = make_causal(model, Chunks())
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for value in twin.parameters():
            value.add_(0.01)
    plain = transformer()
    plain.load_state_dict(twin.state_dict())
    make_causal(plain, Chunks())
    assert torch.equal(run(twin, x, t, text), run(plain, x, t, text))
    assert not torch.allclose(run(twin, x, t, text), run(model, x, t, text))
    assert causal_of(twin) is causal
    assert make_causal(twin, Chunks()) is causal
    with pytest.raises(InputError, match="causal in"):
        make_causal(twin, Chunks(2))


def test_gradients_reach_the_past_through_the_mask_and_stop_at_a_window() -> None:
    model, (x, t, text) = transformer(), clip(3)
    causal = make_causal(model, Chunks())
    x.requires_grad_(True)
    model(hidden_states=x, timestep=t, encoder_hidden_states=text, return_dict=False)[0][:, :, 1].sum().backward()
    assert x.grad is not None
    assert (x.grad.abs().amax((0, 1, 3, 4)) > 0).tolist() == [True, True, False]
    window = Window(Chunks())
    first = x.detach()[:, :, :1].requires_grad_(True)
    with causal.after(window, keep=1):
        model(hidden_states=first, timestep=t[:, :1], encoder_hidden_states=text, return_dict=False)
    with causal.after(window):
        out = model(hidden_states=x.detach()[:, :, 1:2], timestep=t[:, 1:2], encoder_hidden_states=text)[0]
    out.sum().backward()
    assert first.grad is None


def test_rotations_compose() -> None:
    x = torch.randn(1, 3, 2, 8)
    by = torch.polar(torch.ones(1, 1, 1, 4), torch.rand(1, 1, 1, 4))
    there = rotated(x, by)
    assert torch.allclose(rotated(there, by.conj()), x, atol=1e-6)
    assert not torch.allclose(there, x, atol=1e-2)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"size": 0}, "chunk"),
        ({"size": 2, "window": 3}, "window"),
        ({"size": 2, "window": 2, "sink": 2}, "window"),
        ({"size": 2, "sink": 1}, "sink"),
    ],
)
def test_chunks_that_fit_nothing_are_refused(values: dict[str, int], word: str) -> None:
    with pytest.raises(InputError, match=word):
        Chunks(**values)


def test_a_model_of_which_too_little_is_known_is_refused_by_name() -> None:
    flux = FluxTransformer2DModel(num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=1)
    with pytest.raises(InputError, match="FluxTransformer2DModel"):
        make_causal(flux, Chunks())
