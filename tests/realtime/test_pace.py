"""The clock and the controller, with times that the tests choose."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.errors import InputError
from fewstep.realtime.pace import Controller, FrameClock, Level, levels


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


@given(st.lists(st.tuples(st.integers(1, 9), st.sampled_from([4.0, 8.0, 16.0])), min_size=1, max_size=40))
def test_a_clock_that_changes_its_pace_leaves_no_gap(changes: list[tuple[int, float]]) -> None:
    clock, frame = FrameClock(fps=16, held=4), 1
    before = clock.due(frame)
    for frames, fps in changes:
        clock.run_at(fps, frame)
        assert clock.due(frame) == pytest.approx(before)
        assert clock.due(frame + 1) - clock.due(frame) == pytest.approx(1 / fps)
        frame += frames
        before = clock.due(frame)


def test_levels_are_steps_and_then_a_slower_clock() -> None:
    assert [(one.steps, one.fps) for one in levels(4, 16)] == [(4, 16), (2, 16), (1, 16), (1, 8), (1, 4)]
    assert [one.steps for one in levels(6, 16)] == [6, 3, 1, 1, 1]
    assert [(one.steps, one.fps) for one in levels(2, 16, slowest=1)] == [(2, 16), (1, 16)]
    assert str(Level(1, 8.0)) == "1 step at 8 frames a second"


@given(st.integers(1, 16), st.sampled_from([0.25, 0.5]))
def test_no_level_is_more_work_than_the_one_before(steps: int, share: float) -> None:
    found = levels(steps, 16, share=share)
    assert all(before.work >= after.work for before, after in pairwise(found))
    assert found[0] == Level(steps, 16)
    assert (Level(steps, 16, share) in found) == (steps > 1)
    assert [one for one in found if one.share == 1] == levels(steps, 16)
    assert str(Level(4, 16, share)) == "4 steps of what moves at 16 frames a second"


def test_the_controller_takes_fewer_steps_under_load_and_more_when_there_is_room() -> None:
    control = Controller(levels(4, 16), patience=3)
    for chunk in range(10):
        control.heard(chunk, 0.05 + 0.07 * control.now.steps, has=4 / control.now.fps)  # 4 steps: 132%, 2: 76%
    assert control.now == Level(2, 16)
    assert control.said[-1].endswith(
        "4 steps at 16 frames a second took 132% of the time, now 2 steps at 16 frames a second"
    )
    for chunk in range(10):
        control.heard(chunk, 0.01 * control.now.steps, has=4 / control.now.fps)
    assert control.now == Level(4, 16)


def test_one_slow_chunk_costs_a_level_and_two_cost_what_it_takes() -> None:
    control = Controller(levels(4, 16, share=0.5), patience=3)
    passed = []
    for chunk in range(6):
        control.heard(chunk, 1.0, has=0.25)  # four times too long, and no shorter whatever is done
        passed.append(control.now)
    # A chunk after each change does not count; (1, 8) is a fifth of the work, and should fit.
    assert passed == [Level(4, 16, 0.5)] * 2 + [Level(1, 8)] * 2 + [Level(1, 4)] * 2


def test_a_slow_chunk_now_and_then_does_not_add_up() -> None:
    control = Controller(levels(4, 16, share=0.5), patience=3)
    for chunk in range(40):
        control.heard(chunk, 0.6 if chunk % 10 == 5 else 0.06, has=0.25)
    assert control.now in (Level(4, 16), Level(4, 16, 0.5))


def test_the_controller_slows_the_clock_where_one_step_is_too_much_and_hurries_it_again() -> None:
    control = Controller(levels(4, 16), patience=3)
    for chunk in range(10):
        control.heard(chunk, 0.4, has=4 / control.now.fps)  # 160% at 16 frames a second, 80% at 8
    assert control.now == Level(1, 8)
    assert control.said[-1].endswith("now 1 step at 8 frames a second")
    for chunk in range(40):
        control.heard(chunk, 0.01 * control.now.steps, has=4 / control.now.fps)
    assert control.now == Level(4, 16)


@given(st.lists(st.floats(0.001, 3), min_size=1, max_size=60))
def test_the_controller_stays_within_its_levels(spent: list[float]) -> None:
    control = Controller(levels(8, 16))
    for chunk, seconds in enumerate(spent):
        control.heard(chunk, seconds, has=1.0)
        assert control.now in control.levels


def test_values_out_of_range_are_refused() -> None:
    for fps in (0, 1000, float("nan")):
        with pytest.raises(InputError, match="'fps' of a live session"):
            FrameClock(fps, held=4)
