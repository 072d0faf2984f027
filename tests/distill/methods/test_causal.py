"""Causal methods on a tiny video transformer: what they ask for, and what reaches the weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fewstep.diffusion.samplers import flow_times
from fewstep.diffusion.schedule import Schedule
from fewstep.distill.data.samples import PathBatch
from fewstep.distill.engine.roles import Network
from fewstep.distill.methods.causal_kd import CausalKD, at_frames, whole_chunks
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

    class Right(torch.nn.Module):
        def forward(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
            v = torch.zeros_like(x_t)
            for sample in range(len(x_t)):
                for frame in range(x_t.shape[2]):
                    k = TIMES.index(min(TIMES, key=lambda one: abs(one - float(t[sample, frame]))))
                    after = min(k + 1, 2) if sampler == "euler" else 2
                    if k < 2:
                        ends = paths.states[sample, [k, after], :, frame]
                        v[sample, :, frame] = (ends[0] - ends[1]) / (TIMES[k] - TIMES[after])
            return v

    method = CausalKD(FramesNetwork(Right(), Schedule.flow()), Chunks(2), sampler)
    for seed in range(5):
        (update,) = method.updates(paths, torch.Generator().manual_seed(seed))
        assert float(update.loss) == pytest.approx(0, abs=1e-8)


def test_clean_chunks_are_context_and_not_learnt_from() -> None:
    """With all chunks but the last clean, the loss does not change with what those would predict."""
    chunks, paths = Chunks(1), batch(1)

    class Noisy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.clean = 0.0

        def forward(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
            return torch.where((t == 0)[:, None, :, None, None], self.clean, 1.0).expand_as(x_t)

    noisy = Noisy()
    method = CausalKD(FramesNetwork(noisy, Schedule.flow()), chunks)
    losses = []
    for noisy.clean in (0.0, 100.0):
        losses.append(
            [float(next(iter(method.updates(paths, torch.Generator().manual_seed(s)))).loss) for s in range(9)]
        )
    assert losses[0] == losses[1]
    assert all(loss > 0 for loss in losses[0])


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
