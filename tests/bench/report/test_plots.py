"""The charts: every row is on them, and no name covers another."""

from __future__ import annotations

import matplotlib as mpl
import pytest

from fewstep.bench.report import plots
from fewstep.bench.report.style import STYLE
from tests.bench import synthetic


def texts(figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_the_waterfall_has_every_row_and_its_speed() -> None:
    made = synthetic.report()
    shown = [text.replace("\n", " ") for text in texts(plots.waterfall(made))]
    for row in made.rows:
        assert plots.short_name(made, row) in shown
        assert plots.factor(row.speedup) in shown
    assert shown.count("4-step student") == 2  # alone, and where the stack begins


def test_a_long_name_ends_before_its_bar_and_covers_no_other() -> None:
    long = "1-step student + precision + compile + quantize"
    rows = (*synthetic.rows(), synthetic.row(long, "stack", 1, 70.0, 0.6, 50, 20))
    with mpl.rc_context(STYLE):
        figure = plots.waterfall(synthetic.report(rows=rows))
        figure.canvas.draw()
    axes = figure.axes[0]
    boxes = {text.get_text().replace("\n", " "): text.get_window_extent() for text in axes.texts}
    assert boxes[long].x1 < axes.transData.transform((1, 0))[0]
    assert not any(boxes[long].overlaps(box) for name, box in boxes.items() if name != long)


def test_names_in_the_scatter_do_not_cover_each_other() -> None:
    with mpl.rc_context(STYLE):
        figure = plots.speed_quality(synthetic.report())
        figure.canvas.draw()
    axes = figure.axes[0]
    names = [t for t in axes.texts if t.get_text() and "real pictures" not in t.get_text()]
    boxes = [text.get_window_extent() for text in names]
    assert len(boxes) == len(synthetic.rows())
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i]), names[i].get_text()


def test_the_same_report_gives_the_same_bytes() -> None:
    with mpl.rc_context(STYLE):
        a, b = (plots.as_svg(plots.speed_quality(synthetic.report())) for _ in range(2))
    assert a == b
    assert a.startswith("<svg")


@pytest.mark.parametrize("speedup", [0.3, 250.0])
def test_slow_and_very_fast_rows_fit(speedup) -> None:
    rows = (synthetic.rows()[0], synthetic.row("odd", "alone", 4, speedup, 0.9, 50, 20))
    axes = plots.waterfall(synthetic.report(rows=rows)).axes[0]
    low, high = axes.get_xlim()
    assert low < speedup < high
