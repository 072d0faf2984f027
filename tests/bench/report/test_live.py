"""The waterfall of live video: bars where they belong, and files that are whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fewstep.bench.report import live


def row(kind: str, trick: str, made: float, **more: Any) -> dict[str, Any]:
    return {"kind": kind, "trick": trick, "made": made, **more}


VIEWER = {"first_frame_s": 0.071, "jitter_ms": 3.25, "missed": 2}
ROWS = (
    row("teacher", "50 steps", 6.0, accuracy=1.0),
    row("teacher", "4 steps", 48.0),
    row("stack", "none", 24.0, **VIEWER),
    row("stack", "+ window", 36.0, **VIEWER),
    row("stack", "+ compile", 30.0, **VIEWER),
    row("fewer", "1 step", 120.0, **VIEWER),
    row("served", "one viewer", 27.0, **VIEWER),
    row("viewers", "10 viewers", 60.0),
    {"kind": "accuracy", "opening": 0.5},
)


@pytest.fixture(scope="module")
def axes() -> Any:
    return live.waterfall(ROWS, 16).axes[0]


def test_each_bar_goes_from_what_was_there_to_what_is(axes: Any) -> None:
    bars = [(round(bar.get_x(), 6), round(bar.get_x() + bar.get_width(), 6)) for bar in axes.patches]
    pale, own = bars[::2], bars[1::2]
    assert own == [(6, 6), (6, 48), (6, 24), (24, 36), (36, 30), (30, 120), (30, 27)]
    assert pale == [(6, 6), (6, 6), (6, 6), (6, 24), (6, 30), (6, 30), (6, 27)]
    hatched = [bool(bar.get_hatch()) for bar in axes.patches[1::2]]
    assert hatched == [False, False, False, False, True, False, True]


def test_it_says_the_figures(axes: Any) -> None:
    said = [text.get_text() for text in axes.texts]
    for text in ("50 steps", "+ window", "36", "6.00×", "120", "20.0×", "0.07 s", "3.2 ms", "2", "first frame"):
        assert text in said
    assert "10 viewers" not in said


def test_rows_without_a_teacher_or_a_server_are_drawn_too() -> None:
    figure = live.waterfall([one for one in ROWS if one["kind"] == "stack"], 16)
    assert len(figure.axes[0].patches) == 6


def test_the_files_are_whole_and_the_same_each_time(tmp_path: Path) -> None:
    png, svg = live.save(ROWS, 16, tmp_path / "docs" / "realtime")
    assert Image.open(png).size[0] > 1000
    first = svg.read_bytes()
    assert b"</svg>" in first
    live.save(ROWS, 16, tmp_path / "docs" / "realtime")
    assert svg.read_bytes() == first
