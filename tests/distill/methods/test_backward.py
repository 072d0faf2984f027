"""Training starts from the states that the student's sampler visits, and has a gradient where a guess is a sample."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fewstep.diffusion.samplers import euler, renoise
from fewstep.diffusion.schedule import Schedule
from fewstep.distill.data.paths import start_from
from fewstep.distill.engine.roles import Network
from fewstep.distill.methods.backward import Rollout, guess, noised, simulate
from fewstep.errors import InputError
from tests.distill.methods.matching_toys import FLOW, MIXTURE, SCHEDULES, batch, exact

TIMES = (1.0, 0.75, 0.5, 0.25, 0.0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Recorder:
    """A denoiser that keeps what it was asked."""

    def __init__(self, inner):
        self.inner, self.schedule, self.module, self.asked = inner, inner.schedule, inner.module, []

    def __call__(self, x_t, t, cond=None):
        self.asked.append((t, x_t))
        return self.inner(x_t, t, cond)


def test_every_state_is_one_that_the_sampler_visits():
    noise = torch.randn(16, 2, generator=generator(7))
    for step in range(len(TIMES) - 1):
        whole = Recorder(exact())
        renoise(whole, noise, TIMES, generator=generator())
        state = simulate(exact(), noise, TIMES, step, None, generator())
        t, visited = whole.asked[step]
        assert t == TIMES[step]
        assert torch.equal(state, visited)


def test_the_first_state_has_the_noise_of_its_time():
    noise = torch.randn(20000, 2, generator=generator())
    state = simulate(exact(schedule=Schedule.edm()), noise, (80.0, 1.0, 0.0), 0, None, generator())
    torch.testing.assert_close(state.std(), torch.tensor(80.0), rtol=0.02, atol=0)


def test_the_exit_step_is_drawn_evenly_and_no_step_runs_after_it():
    rollout, counts, some = Rollout(TIMES), [0] * 4, batch(4)
    for seed in range(100):
        student = Recorder(exact())
        rollout.sample(student, some, generator(seed))
        times = [t for t, _ in student.asked]
        assert times == list(TIMES[: len(times)])
        counts[len(times) - 1] += 1
    assert all(13 < count < 38 for count in counts)


class Stamped(nn.Module):
    """Adds a trained number of its own at each time, so that gradients tell which steps they come from."""

    def __init__(self):
        super().__init__()
        self.stamps = nn.Parameter(torch.zeros(4))

    def forward(self, x_t, t, cond=None):
        return x_t + self.stamps[[TIMES.index(float(one)) for one in t]][:, None]


def test_only_the_exit_step_has_a_gradient():
    seen = set()
    for seed in range(20):
        student = Recorder(Network(Stamped(), FLOW))
        Rollout(TIMES).sample(student, batch(4), generator(seed)).sum().backward()
        trained = student.module.stamps.grad.nonzero().flatten().tolist()
        assert trained == [len(student.asked) - 1]
        seen.update(trained)
    assert seen == {0, 1, 2, 3}


@pytest.mark.parametrize("schedule", [FLOW, Schedule.edm()], ids=["flow", "edm"])
def test_along_the_flow_the_end_is_the_sample(schedule):
    times = TIMES if schedule is FLOW else (80.0, 2.0, 0.0)
    teacher, noise = exact(schedule=schedule), torch.randn(16, 2, generator=generator())
    sample = Rollout(times, "euler").sample(teacher, batch(16), generator())
    expected = euler(teacher, start_from(schedule, noise, times[0]), times)
    torch.testing.assert_close(sample, expected.float())


def test_along_the_flow_all_steps_have_a_gradient():
    student = Network(Stamped(), FLOW)
    Rollout(TIMES, "euler").sample(student, batch(4), generator()).sum().backward()
    assert len(student.module.stamps.grad.nonzero()) == 4


def test_simulation_uses_no_data_and_the_other_way_noises_it():
    a, b = batch(64, seed=1), batch(64, seed=2)
    for simulated in (True, False):
        rollout = Rollout(TIMES, simulated=simulated)
        same = all(
            torch.equal(rollout.state(exact(), a, generator(s))[0], rollout.state(exact(), b, generator(s))[0])
            for s in range(5)
        )
        assert same == simulated
    x_t, t = Rollout(TIMES, simulated=False).state(exact(), a, generator())
    assert t.shape == (64,)
    assert set(t.tolist()) == set(TIMES[:-1])
    quarter = t == 0.25
    apart = x_t[quarter] - 0.75 * a.states[quarter, -1]
    assert 0.1 < apart.std() < 0.4  # noise of deviation 0.25


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{s.kind}-{s.prediction}")
def test_a_guess_is_the_exact_mean(schedule):
    t = schedule.time_of(torch.tensor([0.3, 1.0, 4.0], dtype=torch.float64))
    x_t = noised(schedule, MIXTURE.sample(3, generator()), t, generator(1))
    torch.testing.assert_close(guess(exact(schedule=schedule), x_t, t, None), MIXTURE.denoiser(schedule).x0(x_t, t))


def test_steps_without_gradient_do_not_take_it_from_the_one_with():
    """Autocast keeps its casts of the weights for a while, and those made without gradient must not serve with one."""
    student = Network(Small(), FLOW)
    noise = torch.randn(8, 2, generator=generator())
    with torch.autocast("cpu", torch.bfloat16):
        x_t = simulate(student, noise, TIMES, 2, None, generator())
        x0 = guess(student, x_t, TIMES[2], None)
    assert x0.dtype == torch.float32
    x0.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in student.module.parameters())


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x_t, t, cond=None):
        return self.linear(x_t)


@pytest.mark.parametrize("times", [(1.0,), (0.0, 1.0), (1.0, 1.0, 0.0)])
def test_bad_times_are_one_sentence(times):
    with pytest.raises(InputError, match=r"^The 'times' of a student must be at least two falling numbers"):
        Rollout(times)


def test_other_samplers_are_refused():
    with pytest.raises(InputError, match=r"^The 'sampler' of a student must be one of"):
        Rollout(TIMES, sampler="heun")
