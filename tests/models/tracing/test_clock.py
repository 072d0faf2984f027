"""Clocks: each form of a module's timestep is found again from recorded pairs, and others are refused."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from fewstep.models.tracing.clock import Clock, TimeArg, fit_clock, read_time

EPS = torch.finfo(torch.float32).eps
TIMES = [0.9806, 0.7143, 0.4352, 0.1239]
TABLE = ((0.1, 0.3, 0.6, 1.0), (0.0, 1.0, 2.0, 3.0))

FORMS: dict[str, Callable[[float], float]] = {
    "the time itself": lambda t: t,
    "thousandths": lambda t: 1000 * t,
    "whole thousandths": lambda t: math.floor(1000 * t),
    "rounded thousandths": lambda t: float(round(1000 * t)),
    "reversed": lambda t: 1000 - 1000 * t,
    "one minus": lambda t: 1 - t,
    "any line": lambda t: 3.7 * t + 0.21,
    "a quarter of the logarithm": lambda t: 0.25 * math.log(t),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_found_and_holds_at_other_times(form: str) -> None:
    told = FORMS[form]
    clock = fit_clock(TIMES, [told(t) for t in TIMES], None, EPS)
    assert clock is not None
    for t in (*TIMES, 0.9, 0.5004, 0.3):
        assert clock(t) == pytest.approx(told(t), rel=1e-6, abs=1e-6)
        assert float(clock.of(torch.tensor(t, dtype=torch.float64))) == pytest.approx(told(t), rel=1e-6, abs=1e-6)


def test_a_place_in_a_table() -> None:
    times = [0.9, 0.5, 0.2]
    linear = fit_clock(times, [2.75, 1 + 2 / 3, 0.5], TABLE, EPS)
    assert linear is not None
    assert linear.warp == "table"
    assert linear(0.45) == pytest.approx(1.5)
    log = fit_clock(times, [2 + math.log(0.9 / 0.6) / math.log(1 / 0.6), 1 + math.log(0.5 / 0.3) / math.log(2),
                            math.log(2) / math.log(3)], TABLE, EPS)  # fmt: skip
    assert log is not None
    assert log.warp == "log table"


def test_whole_numbers_may_hang_on_the_last_bit() -> None:
    """The scheduler cut 899.9999 to 899 where its t, kept in float32, is 0.9 to us."""
    clock = fit_clock([0.9, 0.75, 0.5], [899.0, 750.0, 500.0], None, EPS)
    assert clock is not None
    assert clock(0.9) == 899.0
    assert clock(0.8) == 800.0


@pytest.mark.parametrize(
    "told", [[1.0, 0.5, 0.9, 0.2], [t**2 for t in TIMES], [1000.0, 700.0, 433.0, 119.0]], ids=["any", "square", "off"]
)
def test_what_the_time_does_not_explain_is_refused(told: list[float]) -> None:
    assert fit_clock(TIMES, told, None, EPS) is None


def test_two_numbers_at_one_time_are_refused() -> None:
    assert fit_clock([0.9, 0.9, 0.5], [900.0, 901.0, 500.0], None, EPS) is None


def test_arguments_take_the_recorded_shape() -> None:
    thousand = Clock(1000.0)
    cpu = torch.device("cpu")
    assert TimeArg(("t",), thousand, None, None, 2).build(0.5, 6, cpu) == 500.0
    one = TimeArg(("t",), thousand, (), torch.int64, 2).build(0.5, 6, cpu)
    assert one.shape == ()
    assert one.dtype == torch.int64
    row = TimeArg(("t",), thousand, (2,), torch.float32, 2).build(0.5, 6, cpu)
    assert torch.equal(row, torch.full((6,), 500.0))
    grid = TimeArg(("t",), thousand, (2, 5), torch.float32, 2).build(torch.tensor([0.5, 0.25]), 4, cpu)
    assert torch.equal(grid, torch.tensor([500.0, 250.0, 500.0, 250.0])[:, None].expand(4, 5))


def test_reading_a_time() -> None:
    assert read_time(torch.full((2, 3), 7)) == 7.0
    assert read_time(torch.tensor([1.0, 2.0])) is None
    assert read_time(0.5) == 0.5
    assert read_time(True) is None
    assert read_time("0.5") is None
