"""The table in the terminal: every row keeps its name and its figures, however narrow the window."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from fewstep.bench.report.terminal import show
from tests.bench.synthetic import report


@pytest.mark.parametrize("width", [80, 140])
def test_every_row_is_named_and_nothing_is_cut(width: int) -> None:
    made, written = report(), io.StringIO()
    show(made, Console(file=written, width=width, highlight=False))
    text = written.getvalue()
    assert "…" not in text
    for row in made.rows:
        assert row.name.split(" + ")[-1].split()[0] in text.split("as fast as the baseline")[0]
    assert all(column in text for column in ("speed-up", "accuracy", "Fréchet", "verdict"))
    assert "112× with less of what was asked for" in text
    assert ("PSNR" in text) == (width > 100)
