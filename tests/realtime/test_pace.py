"""The clock and the controller, with times that the tests choose."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.errors import InputError
from fewstep.realtime.pace import Controller, FrameClock


def test_the_first_frame_is_due_at_once_and_the_others_after_the_lead() -> None:
    clock = FrameClock(fps=10, held=4)
    assert [clock.due(frame) for frame in (0, 1, 5)] == [0.0, pytest.approx(0.5), pytest.approx(0.9)]
    assert clock.wait(5, ahead=1.0, now=100.0) == 0.0  # nothing was shown yet
    assert clock.ready(0, now=100.0)
    assert clock.wait(5, ahead=0.2, now=100.0) == pytest.approx(0.7)
    assert clock.wait(5, ahead=5.0, now=100.0) == 0.0


def test_a_late_chunk_is_missed_once_and_moves_the_clock() -> None:
    clock = FrameClock(fps=10, held=4)
    clock.ready(0, now=0.0)
    assert clock.ready(1, now=0.5)
    assert not clock.ready(5, now=1.4)  # due at 0.9
    assert clock.missed == 1
    assert clock.started == pytest.approx(0.5)
    assert clock.ready(9, now=1.7)  # due at 1.3 + 0.5
    assert clock.jitter() > 0.4


@given(st.lists(st.floats(0, 0.39), min_size=1, max_size=40))
def test_work_that_is_always_quicker_than_its_frames_misses_nothing(spent: list[float]) -> None:
    clock, now = FrameClock(fps=10, held=4), 0.0
    for chunk, seconds in enumerate(spent):
        now += clock.wait(4 * chunk, ahead=1.2, now=now) + seconds
        clock.ready(4 * chunk, now)
    assert clock.missed == 0
    assert clock.jitter() == 0


def test_the_controller_takes_fewer_steps_under_load_and_more_when_there_is_room() -> None:
    control = Controller([4, 2, 1], patience=3)
    for chunk in range(10):
        control.heard(chunk, 0.05 + 0.07 * control.steps, has=0.25)  # 4 steps: 132%, 2: 76%
    assert control.steps == 2
    assert "4 steps took 132% of the time, now 2" in control.said[-1]
    for chunk in range(10):
        control.heard(chunk, 0.01 * control.steps, has=0.25)
    assert control.steps == 4


@given(st.lists(st.floats(0.001, 3), min_size=1, max_size=60))
def test_the_controller_stays_within_its_levels(spent: list[float]) -> None:
    control = Controller([8, 4, 2, 1])
    for chunk, seconds in enumerate(spent):
        control.heard(chunk, seconds, has=1.0)
        assert control.steps in (8, 4, 2, 1)


def test_values_out_of_range_are_refused() -> None:
    for fps in (0, 1000, float("nan")):
        with pytest.raises(InputError, match="'fps' of a live session"):
            FrameClock(fps, held=4)
