"""Conversions are exact both ways, at every time at which they are defined."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.diffusion.schedule import Prediction, Schedule
from fewstep.errors import InputError

SQUARES = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)
ZERO_SNR = torch.cat([SQUARES[:-1], torch.zeros(1, dtype=torch.float64)])
PREDICTIONS: tuple[Prediction, ...] = ("flow", "eps", "v", "x0")
MAKERS = {
    "flow": Schedule.flow,
    "vp": lambda prediction: Schedule.vp(SQUARES, prediction),
    "zero_snr": lambda prediction: Schedule.vp(ZERO_SNR, prediction),
    "edm": Schedule.edm,
}
SPANS = {"flow": (0.0, 1.0), "vp": (-1.0, 999.0), "zero_snr": (-1.0, 999.0), "edm": (0.0, 80.0)}


def sample(shape=(3, 2)):
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(2))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("kind", MAKERS)
@settings(max_examples=25, deadline=None)
@given(part=st.floats(0.01, 0.99))
def test_every_prediction_gives_back_what_x_t_was_made_of(kind, prediction, part):
    schedule, (low, high) = MAKERS[kind](prediction), SPANS[kind]
    t = low + part * (high - low)
    x0, noise = sample()
    x_t = schedule.add_noise(x0, noise, t)
    out = schedule.from_x0(x0, x_t, t)
    torch.testing.assert_close(schedule.to_x0(out, x_t, t), x0, rtol=0, atol=1e-9)
    torch.testing.assert_close(schedule.to_noise(out, x_t, t), noise, rtol=0, atol=1e-9)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("kind", MAKERS)
def test_both_ends_are_exact(kind, prediction):
    schedule, (low, high) = MAKERS[kind](prediction), SPANS[kind]
    x0, noise = sample()
    for t in (low, high):
        x_t = schedule.add_noise(x0, noise, t)
        out = schedule.from_x0(x0, x_t, t)
        assert torch.isfinite(out).all()
        assert torch.isfinite(schedule.to_noise(out, x_t, t)).all()
        if prediction == "eps" and float(schedule.alpha(t)) == 0:
            with pytest.raises(InputError, match="says nothing about x0"):
                schedule.to_x0(out, x_t, t)
        else:
            torch.testing.assert_close(schedule.to_x0(out, x_t, t), x0, rtol=0, atol=1e-12)
    assert torch.equal(schedule.add_noise(x0, noise, schedule.end), x0)


def test_the_predictions_are_the_published_formulas():
    x0, noise = sample()
    t = 321.0
    alpha, sigma = SQUARES[321].sqrt(), (1 - SQUARES[321]).sqrt()
    x_t = alpha * x0 + sigma * noise
    v = Schedule.vp(SQUARES, "v").from_x0(x0, x_t, t)
    torch.testing.assert_close(v, alpha * noise - sigma * x0)  # arXiv 2202.00512, appendix D
    flow = Schedule.flow()
    torch.testing.assert_close(flow.from_x0(x0, flow.add_noise(x0, noise, 0.3), 0.3), noise - x0)
    edm = Schedule.edm("eps")
    torch.testing.assert_close(edm.to_x0(noise, x0 + 7 * noise, 7.0), x0)


def test_vp_hits_the_training_table_at_whole_timesteps():
    schedule = Schedule.vp(SQUARES)
    t = torch.arange(1000)
    torch.testing.assert_close(schedule.alpha(t) ** 2, SQUARES, rtol=1e-13, atol=0)
    between = schedule.alpha(torch.linspace(-1, 999, 3001))
    assert (between.diff() < 0).all()
    assert Schedule.vp(ZERO_SNR).alpha(999.0) == 0
    assert Schedule.vp(SQUARES).alpha(-1.0) == 1


@pytest.mark.parametrize("kind", MAKERS)
def test_time_of_inverts_the_schedule(kind):
    schedule, (low, high) = MAKERS[kind]("x0"), SPANS[kind]
    t = torch.linspace(low, high, 101, dtype=torch.float64)
    ratio = schedule.sigma(t) / schedule.alpha(t)
    torch.testing.assert_close(schedule.time_of(ratio), t, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", MAKERS)
def test_a_batch_of_times_equals_one_time_each(kind):
    schedule, (low, high) = MAKERS[kind]("v"), SPANS[kind]
    x0, noise = sample((4, 2, 3))
    t = torch.linspace(low, high, 4, dtype=torch.float64)
    x_t = schedule.add_noise(x0, noise, t)
    out = schedule.from_x0(x0, x_t, t)
    for i in range(4):
        one = schedule.add_noise(x0[i : i + 1], noise[i : i + 1], float(t[i]))
        torch.testing.assert_close(x_t[i : i + 1], one)
        torch.testing.assert_close(out[i : i + 1], schedule.from_x0(x0[i : i + 1], one, float(t[i])))


def test_half_precision_is_computed_in_single():
    schedule = Schedule.vp(SQUARES, "v")
    x0, noise = (x.to(torch.bfloat16) for x in sample())
    x_t = schedule.add_noise(x0, noise, 500)
    wide = schedule.to_x0(noise.float(), x_t.float(), 500)
    assert torch.equal(schedule.to_x0(noise, x_t, 500), wide.to(torch.bfloat16))


def test_lam_is_infinite_at_the_ends_of_a_flow():
    schedule = Schedule.flow()
    assert schedule.lam(0.5) == 0
    assert schedule.lam(0.0) == math.inf
    assert schedule.lam(1.0) == -math.inf


def test_bad_schedules_are_refused():
    with pytest.raises(InputError, match="'prediction' of Schedule must be one of"):
        Schedule.flow("score")  # type: ignore[arg-type]
    for squares in ([], [0.5, 0.6], [1.0, 0.5], [0.5, -0.1]):
        with pytest.raises(InputError, match="'alphas_cumprod' of Schedule"):
            Schedule.vp(squares)
