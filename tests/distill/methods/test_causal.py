"""Causal methods on a tiny video transformer: what they ask for, and what reaches the weights."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from fewstep.diffusion.samplers import flow_times
from fewstep.diffusion.schedule import Schedule
from fewstep.distill.data.samples import PathBatch
from fewstep.distill.engine.roles import Network
from fewstep.distill.methods.causal_kd import CausalKD, at_frames, straight, whole_chunks
from fewstep.distill.methods.self_forcing import ChunkRollout
from fewstep.errors import InputError
from fewstep.models.causal import make_causal
from fewstep.models.window import Chunks
from tests.models.test_causal import TEXT, transformer

TIMES = tuple(flow_times(2, 3.0))
SHAPE = (4, 4, 4, 6)  # channels, frames, height, width


class Told(torch.nn.Module):
    """A video transformer called as a `Network` calls its module."""

    def __init__(self, chunks: Chunks) -> None:
        super().__init__()
        self.inner = transformer()
        make_causal(self.inner, chunks)
        self.fewstep_causal = self.inner.fewstep_causal

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        out: Tensor = self.inner(hidden_states=x_t, timestep=1000 * t, encoder_hidden_states=cond, return_dict=False)[0]
        return out


class FramesNetwork(Network):
    def __call__(self, x_t, t, cond=None):
        times = torch.as_tensor(t, dtype=x_t.dtype)
        return self.module(x_t, times.expand(len(x_t)) if times.dim() < 2 else times, cond)


def batch(samples: int = 3) -> PathBatch:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(samples, len(TIMES), *SHAPE, generator=generator)
    return PathBatch(states, TIMES, torch.randn(samples, TEXT, 16, generator=generator))


def student(chunks: Chunks) -> FramesNetwork:
    return FramesNetwork(Told(chunks), Schedule.flow())


def test_frames_are_taken_each_from_its_place_on_the_path() -> None:
    paths = batch()
    k = torch.tensor([[0, 0, 1, 2], [2, 2, 2, 2], [1, 0, 1, 0]])
    x_t, t = at_frames(paths, k)
    for sample in range(3):
        for frame in range(4):
            assert torch.equal(x_t[sample, :, frame], paths.states[sample, k[sample, frame], :, frame])
            assert float(t[sample, frame]) == TIMES[k[sample, frame]]


@pytest.mark.parametrize("sampler", ["euler", "renoise"])
def test_a_student_that_lands_where_it_should_has_no_loss(sampler) -> None:
    """The network is told to predict the velocity to the wanted state, which the paths know."""
    paths = batch()

    class Right(Told):
        def forward(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
            v = torch.zeros_like(x_t)
            assert bool((t[:, :4] == 0).all())
            assert torch.equal(x_t[:, :, :4], paths.states[:, -1])  # the past
            for sample in range(len(x_t)):
                for frame in range(4, 8):
                    k = TIMES.index(min(TIMES, key=lambda one: abs(one - float(t[sample, frame]))))
                    after = k + 1 if sampler == "euler" else 2
                    ends = paths.states[sample, [k, after], :, frame - 4]
                    v[sample, :, frame] = (ends[0] - ends[1]) / (TIMES[k] - TIMES[after])
            return v

    method = CausalKD(FramesNetwork(Right(Chunks(2)), Schedule.flow()), Chunks(2), sampler, past_noise=0.0)
    for seed in range(5):
        (update,) = method.updates(paths, torch.Generator().manual_seed(seed))
        assert float(update.loss) == pytest.approx(0, abs=1e-8)


class Seen(Told):
    """Keeps what it was called with, and predicts nothing."""

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        self.seen = x_t
        return torch.zeros_like(x_t)


def test_the_past_is_noised_by_more_or_less_and_not_the_states() -> None:
    paths = batch()
    network = FramesNetwork(Seen(Chunks()), Schedule.flow())
    next(CausalKD(network, Chunks(), past_noise=0.5).updates(paths, torch.Generator().manual_seed(0)))
    past, x_t = network.module.seen.split(4, 2)
    much = (past - paths.states[:, -1]).flatten(1).std(1)
    assert bool((much < 0.55).all())
    assert len({round(float(one), 3) for one in much}) == 3
    for sample, frame in product(range(3), range(4)):
        assert any(torch.equal(x_t[sample, :, frame], state[:, frame]) for state in paths.states[sample])
    with pytest.raises(InputError, match="'past_noise' of causal_kd must be 0 or above"):
        CausalKD(network, Chunks(), past_noise=-1)


def test_longer_clips_teach_what_sees_a_whole_window_by_straight_lines() -> None:
    """About every other update is of them; a change in what their first frames must become changes no loss."""
    chunks, paths = Chunks(1, window=3), batch()
    x0 = torch.randn(3, 1, 4, 6, 4, 6, generator=torch.Generator().manual_seed(1))
    other = x0.clone()
    other[:, :, :, :2] += 1
    network = FramesNetwork(Seen(chunks), Schedule.flow())

    def losses(data: Tensor) -> list[tuple[int, float]]:
        method = CausalKD(network, chunks, past_noise=0.0, longer=lambda draw: PathBatch(data, (0.0,), paths.cond))
        found = []
        for seed in range(12):
            update = next(method.updates(paths, torch.Generator().manual_seed(seed)))
            found.append((network.module.seen.shape[2] // 2, float(update.loss)))
        return found

    of_one, of_other = losses(x0), losses(other)
    assert of_one == of_other
    assert {frames for frames, _ in of_one} == {4, 6}
    # A network that predicts no velocity is off by noise − x0, whose variance is 2.
    assert [loss for frames, loss in of_one if frames == 6] == pytest.approx([2] * 4, rel=0.2)


def test_straight_lines_lead_from_noise_to_data() -> None:
    data = PathBatch(torch.randn(3, 1, *SHAPE), (0.0,), None)
    paths = straight(Schedule.flow(), data, (1.0, 0.25, 0.0), torch.Generator().manual_seed(0))
    assert paths.states.shape == (3, 3, *SHAPE)
    assert torch.equal(paths.states[:, -1], data.states[:, -1])
    assert torch.allclose(paths.states[:, 1], 0.25 * paths.states[:, 0] + 0.75 * data.states[:, -1])


def test_longer_clips_without_a_whole_window_are_refused() -> None:
    paths = batch()
    for chunks, said in ((Chunks(), "needs a 'window'"), (Chunks(1, window=5), "more than the 4 latent frames")):
        network = FramesNetwork(Seen(chunks), Schedule.flow())
        method = CausalKD(network, chunks, longer=lambda draw: PathBatch(paths.states[:, -1:], (0.0,), paths.cond))
        with pytest.raises(InputError, match=said):
            for seed in range(9):
                next(method.updates(paths, torch.Generator().manual_seed(seed)))


def test_self_forcing_rolls_out_as_a_session_does_and_trains_every_chunk() -> None:
    chunks, paths = Chunks(1, window=2), batch(2)
    network = student(chunks)
    rollout = ChunkRollout(TIMES, chunks)
    x = rollout.sample(network, paths, torch.Generator().manual_seed(0))
    assert x.shape == (2, *SHAPE)
    again = rollout.sample(network, paths, torch.Generator().manual_seed(0))
    assert torch.equal(x, again)
    for frame in range(4):
        network.module.zero_grad()
        x[:, :, frame].sum().backward(retain_graph=True)
        assert any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in network.module.parameters())
    other = PathBatch(paths.states, TIMES, paths.cond.flip(0))
    assert not torch.equal(rollout.sample(network, other, torch.Generator().manual_seed(0)), x)


def test_clips_that_are_no_whole_chunks_are_refused() -> None:
    assert whole_chunks(torch.zeros(1, 4, 6, 2, 2), Chunks(3)) == 2
    with pytest.raises(InputError, match="chunks of 4 needs whole ones, and the teacher makes clips of 6"):
        whole_chunks(torch.zeros(1, 4, 6, 2, 2), Chunks(4))
    with pytest.raises(InputError, match="makes no clips"):
        whole_chunks(torch.zeros(1, 4, 6), Chunks(1))
