"""How rows are run: in rounds with the baseline, with the same prompts and seeds, refused rows skipped."""

from __future__ import annotations

import time
from contextlib import ExitStack

import numpy as np
import pytest

from fewstep.bench import candidates
from fewstep.bench.candidates import REPEATS, Batch, Candidate, opened
from fewstep.bench.report.schema import EngagedRow
from fewstep.bench.session import InPairs, Record, Setting, SideBySide, _helps
from fewstep.bench.timing import Run

BASELINE = Candidate("baseline", "baseline")
SHORT = Candidate("2 steps", "steps", call={"num_inference_steps": 2})
REFUSED = Candidate("odd", "alone", solver="rk45")
BATCHES = (Batch(("a", "b"), (1, 2)), Batch(("c", "d"), (3, 4)), Batch(("e", "f"), (5, 6)))


def run(kind, new_toy, rounds=(3, 3), deadline=float("inf"), rows=(SHORT, REFUSED)):
    told: list[str] = []
    with ExitStack() as stack:
        session = kind(Setting(new_toy, BATCHES[: rounds[1]], rounds, deadline, told.append), BASELINE, stack)
        added = [session.add(row) for row in rows]
        session.finish()
    return session, added, told


@pytest.mark.parametrize("kind", [SideBySide, InPairs])
def test_every_row_has_the_baseline_of_each_round_beside_it(kind, new_toy) -> None:
    session, added, told = run(kind, new_toy)
    assert added == [True, False]
    assert list(session.records) == ["baseline", "2 steps"]
    short, base = session.records["2 steps"], session.records["baseline"]
    assert len(short.runs) == len(short.baseline) == len(short.pictures) == len(base.runs) == 3
    assert (short.runs[0].nfe, base.runs[0].nfe) == (4, 40)
    assert short.baseline == base.runs
    assert told


@pytest.mark.parametrize("kind", [SideBySide, InPairs])
def test_a_refused_row_is_skipped_with_the_reason(kind, new_toy) -> None:
    session, _, _ = run(kind, new_toy)
    assert [row.name for row in session.skipped] == ["odd"]
    assert "rk45" in session.skipped[0].why


@pytest.mark.parametrize("kind", [SideBySide, InPairs])
def test_rows_see_the_same_prompts_and_noise(kind, new_toy, toys) -> None:
    same = Candidate("the same", "alone")
    session, _, _ = run(kind, new_toy, rows=(same,))
    a, b = (session.records[name].all_pictures for name in ("baseline", "the same"))
    assert a.shape == (6, 16, 16, 3)
    np.testing.assert_array_equal(a, b)
    timed = [prompts for prompts, _ in toys[0].calls[-3 * REPEATS :: REPEATS]]
    assert timed == [batch.prompts for batch in BATCHES]


@pytest.mark.parametrize(
    ("row", "change"),
    [
        (BASELINE, {"num_inference_steps": 2}),
        (Candidate("x", "steps", call={"num_inference_steps": 25}), {"num_inference_steps": 2}),
        (Candidate("x", "steps", call={"num_inference_steps": 1}), {"num_inference_steps": 1}),
        (Candidate("x", "alone", recipe=("compile", {"precision": {}})), {"num_inference_steps": 2}),
        (Candidate("x", "alone", recipe=({"few_step": {"student": "s"}},)), {}),
        (Candidate("x", "alone", recipe=("cache",)), {"num_inference_steps": 2}),
    ],
)
def test_warm_ups_are_short_unless_steps_matter(row, change) -> None:
    assert row.warm_up_call == change


def test_a_warm_up_is_two_calls(new_toy, toys) -> None:
    run(SideBySide, new_toy, rows=())
    assert [steps for _, steps in toys[0].calls] == [2, 2, *[20] * (3 * REPEATS)]


def test_no_round_starts_that_would_end_too_late(new_toy) -> None:
    session, _, _ = run(SideBySide, new_toy, rounds=(2, 3), deadline=time.monotonic() - 1)
    assert len(session.records["baseline"].runs) == 2


def test_a_mistake_of_ours_is_not_a_skipped_row(new_toy) -> None:
    broken = Candidate("broken", "alone", call={"no_such_argument": 1})
    with pytest.raises(TypeError):
        run(SideBySide, new_toy, rows=(broken,))


@pytest.mark.parametrize("kind", [SideBySide, InPairs])
def test_the_baseline_can_be_made_again(kind, new_toy) -> None:
    with ExitStack() as stack:
        session = kind(Setting(new_toy, BATCHES[:1], (1, 1), float("inf"), lambda _: None), BASELINE, stack)
        session.finish()
        np.testing.assert_array_equal(session.again(BATCHES[0]), session.records["baseline"].pictures[0])


def test_helps_is_asked_of_both_at_once(new_toy) -> None:
    slow = Candidate("slow", "stack", call={"num_inference_steps": 400})
    with ExitStack() as stack:
        session = SideBySide(Setting(new_toy, BATCHES[:1], (1, 1), float("inf"), lambda _: None), BASELINE, stack)
        session.add(slow)
        assert not session.helps("slow", "baseline")
        assert not session.records["slow"].runs  # the probe's runs are not the row's


def test_a_trick_that_makes_other_pictures_does_not_help() -> None:
    def record(seconds: float, pictures: np.ndarray) -> Record:
        return Record(BASELINE, 0, 0, 0, [Run(seconds, 0, 1)], [Run(1.0, 0, 1)], [pictures])

    black, white = np.zeros((1, 4, 4, 3)), np.ones((1, 4, 4, 3))
    assert _helps(record(0.5, black), record(0.8, black))
    assert not _helps(record(0.5, white), record(0.8, black))
    assert not _helps(record(0.79, black), record(0.8, black))


@pytest.mark.parametrize(("reused", "helps"), [(0, False), (5, True)])
def test_a_cache_that_spared_no_step_does_not_help(reused: int, helps: bool) -> None:
    black = np.zeros((1, 4, 4, 3))
    facts = {"steps_computed": 4, "steps_reused": reused}
    row = Record(
        BASELINE, 0, 0, 0, [Run(0.5, 0, 1)], [Run(1.0, 0, 1)], [black], (EngagedRow(name="cache", facts=facts),)
    )
    assert _helps(row, Record(BASELINE, 0, 0, 0, [Run(0.8, 0, 1)], [Run(1.0, 0, 1)], [black])) is helps


@pytest.mark.parametrize(("short", "calls"), [(float("inf"), REPEATS), (0.0, 1)])
def test_a_short_call_is_repeated_and_its_median_counts(new_toy, toys, monkeypatch, short, calls) -> None:
    monkeypatch.setattr(candidates, "SHORT", short)
    seconds = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr(candidates, "measured", lambda call, *_: (call(), Run(next(seconds), 0, 1)))
    with opened(BASELINE, new_toy) as subject:
        pictures, run = subject.run(BATCHES[0])
    assert len(toys[0].calls) == calls
    assert run.seconds == (2.0 if calls == REPEATS else 3.0)
    assert len(pictures) == 2


def test_a_candidate_is_undone_when_it_closes(new_toy, toys) -> None:
    with opened(BASELINE, new_toy) as subject:
        subject.run(BATCHES[0])
    assert "forward" not in toys[0].transformer.__dict__
