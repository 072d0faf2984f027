"""The demo's budget, on a machine as fast as the slowest that it is promised for."""

from __future__ import annotations

import pytest

from fewstep.bench import budget


@pytest.mark.parametrize(("baseline_seconds", "rounds"), [(8.0, 2), (6.2, 3), (4.0, 4)])
def test_it_stays_under_five_minutes(baseline_seconds, rounds) -> None:
    assert budget.expected_seconds(baseline_seconds, rounds) < budget.LIMIT_SECONDS
