"""What a student is asked for is what the formulas say."""

from __future__ import annotations

import pytest
import torch

from fewstep.diffusion.schedule import Schedule
from fewstep.distill.engine.roles import Network
from fewstep.distill.losses import Distance, pseudo_huber, squared, step_target, weight
from fewstep.distill.methods.progressive import euler_step
from fewstep.errors import InputError

SCHEDULES = (
    Schedule.flow(),
    Schedule.vp(torch.linspace(0.999, 0.01, 50), "eps"),
    Schedule.vp(torch.linspace(0.999, 0.01, 50), "v"),
    Schedule.edm("x0"),
)
TIMES = {"flow": ([1.0, 0.7, 0.5], [0.5, 0.2, 0.0]), "vp": ([49.0, 30.0, 10.0], [20.0, 1.0, -1.0])}
TIMES["edm"] = ([9.0, 4.0, 1.0], [3.0, 0.5, 0.0])


class Fixed(torch.nn.Module):
    def __init__(self, prediction):
        super().__init__()
        self.prediction = prediction

    def forward(self, x_t, t, cond):
        return self.prediction


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{s.kind}-{s.prediction}")
def test_one_step_with_the_target_lands_on_the_next_state(schedule):
    generator = torch.Generator().manual_seed(0)
    x_t, x_s = (torch.randn(3, 2, 2, generator=generator) for _ in range(2))
    t, s = (torch.tensor(times, dtype=torch.float64) for times in TIMES[schedule.kind])
    x0 = step_target(schedule, x_t, t, x_s, s)
    student = Network(Fixed(schedule.from_x0(x0, x_t, t)), schedule)
    torch.testing.assert_close(euler_step(student, x_t, t, s, None), x_s, rtol=1e-4, atol=1e-4)


def test_a_flows_target_is_the_mean_velocity():
    schedule, x_t, x_s = Schedule.flow(), torch.randn(3, 2), torch.randn(3, 2)
    t, s = (torch.tensor(times) for times in TIMES["flow"])
    velocity = schedule.from_x0(step_target(schedule, x_t, t, x_s, s), x_t, t)
    torch.testing.assert_close(velocity, (x_t - x_s) / (t - s)[:, None], rtol=1e-4, atol=1e-4)


def test_the_velocity_distance_of_a_flow_is_the_mean_square_error_of_v():
    schedule, x_t, wanted, guess = Schedule.flow(), *(torch.randn(4, 3, 2) for _ in range(3))
    t = torch.tensor([1.0, 0.75, 0.5, 0.01])
    x0 = schedule.to_x0(wanted, x_t, t)
    torch.testing.assert_close(
        Distance()(schedule, guess, x_t, t, x0), (guess - wanted).square().mean(), rtol=1e-3, atol=0
    )


def test_weights():
    schedule, t = Schedule.flow(), torch.tensor([0.25, 0.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(weight(schedule, "velocity", t), 1 / t)
    torch.testing.assert_close(weight(schedule, "snr", t), torch.tensor([3.0, 1.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(weight(schedule, "x0", t), torch.ones(3, dtype=torch.float64))


def test_pseudo_huber_is_square_near_and_linear_far():
    near, far = torch.full((1, 4), 1e-3), torch.full((1, 4), 1e3)
    c = 0.1
    torch.testing.assert_close(pseudo_huber(near, c), squared(near) / (2 * c), rtol=1e-2, atol=0)
    torch.testing.assert_close(pseudo_huber(far, c), torch.tensor([1e3 - c]))


def test_bad_distances_are_one_sentence():
    with pytest.raises(InputError, match="'weighting' of the loss"):
        Distance("loud")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="'huber' of the loss"):
        Distance(huber=-1)
