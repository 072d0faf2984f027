"""Verdicts: a trick that loses to fewer steps is said to lose."""

from __future__ import annotations

import pytest

from fewstep.bench.report.schema import EngagedRow
from fewstep.bench.verdict import judged, reuse, suspicion, weakness
from tests.bench.synthetic import row

BASELINE = row("baseline", "baseline", 100, 1, 0.95, 40, 100)
HALF = row("25 steps", "steps", 50, 2.0, 0.95, 41, 30)
CACHE = EngagedRow(name="teacache", facts={"steps_reused": 20, "steps_computed": 30})
BF16 = EngagedRow(name="precision", facts={})
STUDENT = EngagedRow(name="few_step", facts={"steps": 4})


@pytest.mark.parametrize(
    ("trick", "verdict"),
    [
        (row("faster", "alone", 100, 2.5, 0.95, 41, 25), "wins"),  # nothing is as fast
        (row("better", "alone", 100, 1.6, 0.95, 39, 25), "wins"),  # 25 steps are as fast, but worse in Fréchet distance
        (row("right", "alone", 100, 1.6, 1.0, 41, 25), "wins"),  # ... or in prompts answered
        (row("worse", "alone", 100, 1.6, 0.93, 45, 25), "loses"),
        (row("faithful", "alone", 100, 1.6, 0.95, 41, 45), "keeps the pictures"),
        (row("idle", "alone", 100, 1.01, 0.95, 40, 100), "slower"),
        (row("4 steps", "steps", 8, 12, 0.7, 160, 17), "fewer steps"),
        (BASELINE, "baseline"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_the_verdict_follows_from_the_fewer_steps_rows(trick, verdict) -> None:
    found, why = judged(trick, [BASELINE, HALF, trick])
    assert found == verdict
    assert why


def test_a_trick_that_slows_the_stack_is_said_to() -> None:
    top = row("student", "alone", 4, 20, 0.94, 44, 20)
    worse = row("student + bf16", "stack", 4, 20.2, 0.94, 44, 20, grows_from="student")
    assert judged(worse, [BASELINE, HALF, top, worse])[0] == "slower"
    assert "student" in judged(worse, [BASELINE, HALF, top, worse])[1]


def test_without_a_task_closeness_to_the_baseline_decides() -> None:
    baseline, half = row("baseline", "baseline", 100, 1, None, None, 100), row("25", "steps", 50, 2, None, None, 30)
    close, far = row("close", "alone", 100, 1.5, None, None, 40), row("far", "alone", 100, 1.5, None, None, 20)
    assert judged(close, [baseline, half, close])[0] == "wins"
    assert judged(far, [baseline, half, far])[0] == "loses"


def test_a_speedup_beyond_the_saved_work_is_flagged() -> None:
    honest = row("student", "alone", 4, 24, 0.9, 44, 20, STUDENT)
    too_fast = row("student", "alone", 4, 60, 0.9, 44, 20, STUDENT)
    assert suspicion(honest, [BASELINE, honest]) is None
    assert "25.0× fewer evaluations" in (suspicion(too_fast, [BASELINE, too_fast]) or "")


def test_the_bound_knows_caches_and_faster_kernels() -> None:
    bf16 = row("precision", "alone", 100, 1.8, 0.95, 40, 45, BF16)
    stack = row("student + precision", "stack", 4, 50, 0.9, 44, 20, STUDENT, BF16)
    assert suspicion(stack, [BASELINE, stack]) is not None  # twice the saved work, and nothing explains it
    assert suspicion(stack, [BASELINE, bf16, stack]) is None
    assert suspicion(bf16, [BASELINE, bf16]) is None  # alone it is its own measure
    cached = row("teacache", "alone", 100, 1.9, 0.95, 41, 30, CACHE)
    assert suspicion(cached, [BASELINE, cached]) is None
    assert suspicion(cached.model_copy(update={"speedup": 3.0}), [BASELINE, cached]) is not None


def test_reuse_is_read_from_the_counters() -> None:
    assert reuse(CACHE.facts) == pytest.approx(5 / 3)
    assert reuse({}) == 1
    assert reuse({"steps_reused": 3, "steps_computed": 0}) == 1


def test_a_baseline_that_can_hardly_draw_is_said_to() -> None:
    assert "0% of its pictures" in (weakness(row("baseline", "baseline", 100, 1, 0.0, 40, 100)) or "")
    assert weakness(BASELINE) is None
    assert (
        weakness(row("4 steps", "steps", 8, 12, 0.0, 160, 17)) is None
    )  # only the baseline is what all is compared with
