"""The picture of what was spared holds what the facts hold."""

from __future__ import annotations

from typing import Any

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from fewstep.bench.report.reuse import SIGNS, figure

CACHE: dict[str, Any] = {
    "threshold": 0.3,
    "last_request": {"transformer branch 0": "#..#", "transformer branch 1": "####"},
    "foretold": {"transformer branch 0": [[1, 0.1], [2, 0.2], [3, 0.4]]},
    "measured": {"transformer branch 0": [[3, 0.35]]},
}
REGIONS: dict[str, Any] = {
    "last_request": {"transformer branch 0": "##oo#"},
    "computed": {"transformer branch 0": [0, 1, 2, 2, 1, 0, 0, 0, 1, 1, 1, 1]},
    "grid": [3, 2, 2],
}


def axes_of(facts: dict[str, Any]) -> list[Any]:
    drawn = figure(facts)
    assert isinstance(drawn, Figure)
    drawn.canvas.draw()
    return [axes for part in drawn.subfigs for axes in part.axes]


def test_a_cell_for_each_step_and_branch() -> None:
    strips = axes_of(CACHE)[0]
    told = CACHE["last_request"].values()
    cells = [bar for bar in strips.patches if bar.get_width() > 0]
    assert [to_hex(bar.get_facecolor()) for bar in cells] == [SIGNS[sign][0] for signs in told for sign in signs]
    assert [label.get_text() for label in strips.get_yticklabels()] == list(CACHE["last_request"])


def test_the_gates_value_stands_against_its_threshold_and_what_was_measured() -> None:
    errors = axes_of(CACHE)[1]
    lines = {line.get_label(): line for line in errors.get_lines()}
    assert list(lines["foretold, transformer branch 0"].get_ydata()) == [0.1, 0.2, 0.4]
    assert list(lines["measured, transformer branch 0"].get_xdata()) == [4]  # steps are counted from 1
    assert any(list(line.get_ydata()) == [0.3, 0.3] for line in lines.values())


def test_a_map_for_each_frame() -> None:
    maps = [axes for axes in axes_of(REGIONS) if axes.images]
    assert [axes.images[0].get_array().tolist() for axes in maps] == [
        [[0, 1], [2, 2]],
        [[1, 0], [0, 0]],
        [[1, 1], [1, 1]],
    ]


@pytest.mark.parametrize("grid", [[12], [3, 4]])
def test_a_picture_is_one_map_and_tokens_without_places_a_row(grid: list[int]) -> None:
    maps = [axes for axes in axes_of({**REGIONS, "grid": grid}) if axes.images]
    assert [axes.images[0].get_array().shape for axes in maps] == [tuple(grid) if len(grid) > 1 else (1, 12)]


def test_nothing_told_is_no_picture() -> None:
    assert figure({}) is None
    assert figure({"layers_quantized": 4}) is None
    assert figure({"last_request": {}}) is None
