"""Solvers against a mixture whose denoiser is exact: measured orders, agreement with diffusers, and bad input."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from fewstep.diffusion.analytic import GaussianMixture
from fewstep.diffusion.samplers import ORDERS, SAMPLERS, dpmpp_2m, euler, flow_times, nfe, renoise, sampler, unipc
from fewstep.diffusion.schedule import Schedule
from fewstep.errors import InputError

MIXTURE = GaussianMixture(
    torch.tensor([[1.0, 0.0], [-1.0, 0.5]], dtype=torch.float64),
    torch.tensor([0.6, 0.9], dtype=torch.float64),
    torch.tensor([0.6, 0.4], dtype=torch.float64),
)
SQUARES = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)
SCHEDULES = {"flow": Schedule.flow(), "vp": Schedule.vp(SQUARES)}


def noise(n=32, scale=1.0):
    return scale * torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def even_times(schedule, steps):
    """Even in u = sigma / (alpha + sigma), the smooth clock of every schedule."""
    if schedule.kind == "flow":
        return flow_times(steps)
    top = schedule.sigma(999.0) / (schedule.alpha(999.0) + schedule.sigma(999.0))
    u = top * (1 - torch.arange(steps, dtype=torch.float64) / steps)
    return [*schedule.time_of(u / (1 - u)).tolist(), schedule.end]


def exact_end(schedule, x, steps=400):
    """Classical Runge-Kutta of fourth order in the rescaled flow x/(alpha + sigma) over u."""
    denoiser, first = MIXTURE.denoiser(Schedule.flow()), even_times(schedule, 2)[0]
    alpha, sigma = float(schedule.alpha(first)), float(schedule.sigma(first))
    x, u, h = x / (alpha + sigma), sigma / (alpha + sigma), -sigma / (alpha + sigma) / steps
    for i in range(steps):
        t = u + i * h
        k1 = denoiser(x, t)
        k2 = denoiser(x + h / 2 * k1, t + h / 2)
        k3 = denoiser(x + h / 2 * k2, t + h / 2)
        # The velocity at t = 0 is not defined by x0 alone; its limit is taken a hair before.
        k4 = denoiser(x + h * k3, max(t + h, 1e-9))
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m", "unipc"])
def test_measured_order_is_the_stated_one(name, kind):
    schedule, x = SCHEDULES[kind], noise()
    truth = exact_end(schedule, x)
    steps = (40, 80, 160)
    errors = [
        float((SAMPLERS[name](MIXTURE.denoiser(schedule), x, even_times(schedule, n)) - truth).norm()) for n in steps
    ]
    order = math.log2(errors[0] / errors[-1]) / 2
    assert abs(order - ORDERS[name]) < 0.35, (errors, order)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_second_order_beats_first_at_few_calls(kind):
    schedule, x = SCHEDULES[kind], noise()
    truth, denoiser = exact_end(schedule, x), MIXTURE.denoiser(schedule)
    first, *better = (
        float((solve(denoiser, x, even_times(schedule, 8)) - truth).norm()) for solve in (euler, dpmpp_2m, unipc)
    )
    assert max(better) < first / 2


@pytest.mark.parametrize("shift", [1.0, 1.5, 3.0])
def test_euler_is_diffusers_flow_matching(shift):
    denoiser, x, steps = MIXTURE.denoiser(Schedule.flow()), noise().float(), 7
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist())
    times = flow_times(steps, shift)
    torch.testing.assert_close(torch.tensor(times), scheduler.sigmas.float(), rtol=0, atol=1e-6)
    theirs = x
    for i, timestep in enumerate(scheduler.timesteps):
        theirs = scheduler.step(denoiser(theirs, times[i]), timestep, theirs).prev_sample
    torch.testing.assert_close(euler(denoiser, x, times), theirs, rtol=0, atol=1e-5)


def test_euler_is_diffusers_ddim():
    schedule, x = SCHEDULES["vp"], noise()
    scheduler = DDIMScheduler(trained_betas=(1 - SQUARES / SQUARES.roll(1).index_fill(0, torch.tensor(0), 1.0)).numpy())
    scheduler = DDIMScheduler.from_config(scheduler.config, clip_sample=False, set_alpha_to_one=True)
    scheduler.set_timesteps(10)
    denoiser, theirs = MIXTURE.denoiser(schedule), x
    for t in scheduler.timesteps.tolist():
        theirs = scheduler.step(denoiser(theirs, t), t, theirs).prev_sample
    ours = euler(denoiser, x, [*scheduler.timesteps.tolist(), schedule.end])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_samplers_agree_where_the_denoiser_is_constant():
    """With one exact point as data, every sampler lands on it in any number of steps."""
    point = torch.tensor([[0.3, -2.0]], dtype=torch.float64)
    mixture = GaussianMixture(point, torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    for schedule in (*SCHEDULES.values(), Schedule.edm()):
        times = even_times(schedule, 3) if schedule.kind != "edm" else [80.0, 5.0, 0.1, 0.0]
        x = noise(scale=float(schedule.sigma(times[0])))
        for solve in SAMPLERS.values():
            torch.testing.assert_close(solve(mixture.denoiser(schedule), x, times), point.expand(32, 2))


def test_renoise_draws_from_the_data():
    """With one exact component x0 is known at once; the noise between steps must not leave a trace at the end."""
    denoiser, x = MIXTURE.denoiser(Schedule.flow()), noise(20000)
    which = torch.zeros(len(x), dtype=torch.long)
    out = renoise(denoiser, x, flow_times(200), which, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(out.mean(0), MIXTURE.means[0], rtol=0, atol=0.02)


def test_renoise_of_a_sample_does_not_depend_on_its_batch():
    denoiser, x, times = MIXTURE.denoiser(Schedule.flow()), noise(3), flow_times(4)
    seeds = [torch.Generator().manual_seed(i) for i in range(3)]
    together = renoise(denoiser, x, times, generator=seeds)
    alone = renoise(denoiser, x[2:], times, generator=[torch.Generator().manual_seed(2)])
    assert torch.equal(together[2:], alone)
    with pytest.raises(InputError, match="'generator' of renoise"):
        renoise(denoiser, x, times, generator=seeds[:2])


@pytest.mark.parametrize("name", SAMPLERS)
def test_nfe_counts_the_calls(name):
    calls, exact = [], MIXTURE.denoiser(Schedule.flow())

    class Counting:
        schedule = exact.schedule

        def __call__(self, x_t, t, cond=None):
            calls.append(t)
            return exact(x_t, t, cond)

    SAMPLERS[name](Counting(), noise(), flow_times(5))
    assert len(calls) == nfe(name, 5)


def test_bad_input_is_one_sentence():
    denoiser = MIXTURE.denoiser(Schedule.flow())
    for times in ([], [1.0], [0.0, 1.0], [1.0, 1.0]):
        with pytest.raises(InputError, match="'times' of a sampler"):
            euler(denoiser, noise(), times)
    with pytest.raises(InputError, match="'steps' of flow_times must be at least 1"):
        flow_times(0)
    with pytest.raises(InputError, match="'shift' of flow_times"):
        flow_times(4, shift=0)
    with pytest.raises(InputError, match="'sampler' of sampling must be one of euler"):
        sampler("magic")
