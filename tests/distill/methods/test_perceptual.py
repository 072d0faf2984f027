"""Paths' ends in the teacher's features: no loss where they are met, one network trained, and a student that learns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fewstep.diffusion.samplers import dpmpp_2m, flow_times
from fewstep.distill.data.samples import PathBatch
from fewstep.distill.engine.loop import Settings, train
from fewstep.distill.engine.roles import Network
from fewstep.distill.methods.perceptual import Perceptual
from fewstep.errors import InputError
from tests.distill.methods.matching_toys import (
    FEATURES,
    FLOW,
    batch,
    exact,
    fitted,
    generator,
    one_step,
    run_updates,
    unlike,
)


def paths(step: int, steps: int = 1) -> PathBatch:
    """Noise, and where the exact teacher takes it."""
    noise, times = torch.randn(128, 2, generator=generator(step)), flow_times(32)
    states = [noise]
    for k in range(steps):
        states.append(dpmpp_2m(exact(), states[-1], times[k * 32 // steps : (k + 1) * 32 // steps + 1]))
    return PathBatch(torch.stack(states, dim=1), tuple(flow_times(steps)), None)


class Knows(nn.Module):
    """A student that goes straight to the ends of these paths, from whatever state."""

    def __init__(self, ends: Tensor) -> None:
        super().__init__()
        self.ends = ends

    def forward(self, x_t: Tensor, t: Tensor, cond: object = None) -> Tensor:
        return (x_t - self.ends) / t[:, None]


@pytest.mark.parametrize("sampler", ["euler", "renoise"])
def test_a_student_that_meets_every_end_has_no_loss(sampler):
    given = paths(0, steps=2)
    right = Perceptual(Network(Knows(given.states[:, -1]), FLOW), fitted(), FEATURES, sampler)
    (update,) = right.updates(given, generator())
    assert float(update.loss) < 1e-8
    others = Network(Knows(given.states[:, -1].roll(1, dims=0)), FLOW)
    (update,) = Perceptual(others, fitted(), FEATURES, sampler, weight=0.0).updates(given, generator())
    assert float(update.loss) > 0.05


@pytest.mark.parametrize("sampler", ["euler", "renoise"])
def test_the_student_alone_is_trained(sampler):
    method = Perceptual(unlike(), fitted(), FEATURES, sampler, weight=0.0)
    assert run_updates(method) == ["student"]
    assert list(method.frozen) == ["teacher"]
    assert all(p.requires_grad for p in method.teacher.module.parameters())


def test_what_the_teacher_can_not_tell_apart_is_no_loss():
    """Of two samples which differ only where the teacher does not look, only the squared error tells."""

    class Sideways(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.look = nn.Linear(1, 8)

        def forward(self, x_t: Tensor, t: Tensor, cond: object = None) -> Tensor:
            return self.look(x_t[:, :1]) @ torch.ones(8, 2)

    method = Perceptual(fitted(), Network(Sideways(), FLOW), ["look"])
    x, up, aside = torch.zeros(16, 2), torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])
    assert float(method.apart(x + up, x, None, generator())) == 0
    assert float(method.apart(x + aside, x, None, generator())) > 0


def test_one_step_beats_the_teachers_one_step_by_far(tmp_path):
    student = fitted()
    method = Perceptual(student, fitted(), FEATURES)
    settings = Settings(150, rate=3e-3, warmup=10, ema=0.95)
    done = train(method, paths, tmp_path, settings, show=False)
    ours, teachers = one_step(student.with_module(done.averages["student"])), one_step(exact())
    assert ours < teachers / 8, (ours, teachers)


def test_bad_values_are_one_sentence():
    with pytest.raises(InputError, match=r"^The 'weight' of Perceptual must be 0 or above"):
        Perceptual(fitted(), fitted(), FEATURES, weight=-1.0)
    method = Perceptual(fitted(), fitted(), ["layers.9"])
    with pytest.raises(InputError, match=r"has no part 'layers\.9'"):
        list(method.updates(batch(8), generator()))
