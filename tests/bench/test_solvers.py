"""Solvers as schedulers: driven step by step they must land where the sampler lands in one go."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

from fewstep.bench import solvers
from fewstep.diffusion.analytic import GaussianMixture
from fewstep.diffusion.samplers import SAMPLERS, nfe
from fewstep.diffusion.schedule import Schedule
from fewstep.errors import InputError


@pytest.mark.parametrize("name", list(solvers.STEPS))
def test_the_pipelines_loop_lands_where_the_sampler_does(name: str) -> None:
    mixture = GaussianMixture(
        torch.tensor([[-1.0, 0.5], [2.0, 0.0]]), torch.tensor([0.3, 0.5]), torch.tensor([0.4, 0.6])
    )
    denoiser = mixture.denoiser(Schedule.flow())
    pipe = SimpleNamespace(scheduler=FlowMatchEulerDiscreteScheduler(shift=1.5))
    solvers.install(pipe, name)
    pipe.scheduler.set_timesteps(sigmas=torch.linspace(1, 0.2, 5).numpy())
    noise = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))

    x, calls = noise, 0
    for t in pipe.scheduler.timesteps:  # as every diffusers pipeline does
        x = pipe.scheduler.step(denoiser(x, t / 1000), t, x, return_dict=False)[0]
        calls += 1

    times = [float(s) for s in pipe.scheduler.sigmas]
    torch.testing.assert_close(x, SAMPLERS[name](denoiser, noise, times), atol=1e-5, rtol=1e-5)
    assert calls == nfe(name, 5)


@pytest.mark.parametrize("name", list(solvers.STEPS))
@pytest.mark.parametrize("evaluations", [1, 2, 4, 7])
def test_no_solver_gets_more_evaluations_than_its_share(name: str, evaluations: int) -> None:
    steps = solvers.STEPS[name](evaluations)
    assert nfe(name, steps) <= evaluations < nfe(name, steps + 1)


def test_a_second_request_starts_anew() -> None:
    pipe = SimpleNamespace(scheduler=FlowMatchEulerDiscreteScheduler())
    solvers.install(pipe, "dpmpp_2m")
    ends = []
    for _ in range(2):
        pipe.scheduler.set_timesteps(3)
        x = torch.ones(1, 2)
        for t in pipe.scheduler.timesteps:
            x = pipe.scheduler.step(0.5 * x, t, x)[0]
        ends.append(x)
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=0)


def test_other_pipelines_get_the_diffusers_scheduler() -> None:
    pipe = SimpleNamespace(scheduler=DDIMScheduler(beta_start=0.001))
    solvers.install(pipe, "dpmpp_2m")
    assert isinstance(pipe.scheduler, DPMSolverMultistepScheduler)
    assert pipe.scheduler.config.beta_start == 0.001


def test_what_can_not_be_had_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="'rk45'"):
        solvers.install(SimpleNamespace(scheduler=DDIMScheduler()), "rk45")
    with pytest.raises(InputError, match=r"no heun solver .* DDIMScheduler"):
        solvers.install(SimpleNamespace(scheduler=DDIMScheduler()), "heun")
