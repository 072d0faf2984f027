"""Predictions beside published runs: how near they are is a promise of the docs."""

from __future__ import annotations

import pytest

from benchmarks import plan


@pytest.fixture(scope="module")
def rows() -> list[plan.Row]:
    return [row for series in plan.published() for row in plan.compared(series)]


def test_the_median_error_is_small(rows: list[plan.Row]) -> None:
    every, unseen = plan.medians(rows)
    assert every["of scaled"] >= 50
    assert unseen["of scaled"] >= 15
    for some in (every, unseen):
        assert some["scaled"] <= 0.10
        assert some["absolute"] <= 0.15


def test_the_fastest_layout_is_mostly_found(rows: list[plan.Row]) -> None:
    choices = list(plan.chosen(rows))
    assert sum(choices) >= 0.7 * len(choices)


def test_every_figure_has_a_source(rows: list[plan.Row]) -> None:
    assert all(row["source"].startswith("https://") for row in rows)


def test_both_tables_hold_every_series(rows: list[plan.Row]) -> None:
    names = {row["series"] for row in rows}
    for lines in (plan.by_run(rows), plan.by_series(rows)):
        text = "\n".join(lines)
        assert all(name in text for name in names)
