"""The waterfall of live video: frames a second as one trick comes to the other, and beside each what a viewer has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fewstep.bench.report.plots import factor, save_png
from fewstep.bench.report.style import INK, MUTED, PAPER, STYLE
from fewstep.files import replacing

Row = Mapping[str, Any]
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
LEFT = -0.56  # where names begin, in widths of the axes
COLUMNS = {1.27: "first frame", 1.43: "jitter", 1.58: "missed"}  # where they end


@dataclass(frozen=True)
class Group:
    """Rows under one heading. `grows`: each goes on from the one before it; otherwise from the last of the stack."""

    kind: str
    title: str
    colour: str
    grows: bool = False


GROUPS = (
    Group("teacher", "The teacher, a clip at a time", "#9aa5b1"),
    Group("stack", "The causal student, live: one trick more in each row", "#0f7c70", grows=True),
    Group("fewer", "All of them, and less work for each chunk", "#d9922e"),
    Group("served", "All of them, through the server's socket", "#7b8fb5"),
)


def waterfall(rows: Sequence[Row], fps: float) -> Figure:
    """Bars of frames a second on a log axis, which begin at the slowest teacher's.

    Args:
        rows: each with `kind` (of `GROUPS`; others are not drawn), `trick`, `made` (frames a second), and where they
            are known `first_frame_s`, `jitter_ms` and `missed`. The first one is what the others are compared with.
        fps: that a viewer was shown.
    """
    groups = [(group, found) for group in GROUPS if (found := [row for row in rows if row["kind"] == group.kind])]
    shown = [row for _, found in groups for row in found]
    first, stack = shown[0]["made"], [row for row in shown if row["kind"] == "stack"]
    lines = len(shown) + 1.35 * len(groups)
    height = 0.95 + 0.34 * lines
    figure = Figure(figsize=(10.4, height), facecolor=PAPER)
    axes = figure.add_axes((0.275, 0.5 / height, 0.455, 1 - 0.6 / height))
    y = -1.35
    for group, found in groups:
        y += 1.35
        _beside(axes, y - 0.95, group.title, weight="bold")
        before = None if group.grows or not stack else stack[-1]["made"]
        for row in found:
            start = first if group.kind == "teacher" or before is None else before
            _bar(axes, row, y, group.colour, first, start)
            before = row["made"] if group.grows else before
            y += 1
    for x, title in COLUMNS.items():
        _at(axes, x, -0.95, title)
    _axis(axes, [row["made"] for row in shown])
    axes.set_ylim(y - 0.2, -1.5)
    axes.axvline(fps, color=MUTED, lw=0.8, ls=(0, (4, 4)), zorder=0)
    axes.text(fps, y - 0.25, f" {fps:g}: what a viewer is shown", color=MUTED, va="bottom", size=8.5)
    return figure


def save(rows: Sequence[Row], fps: float, place: Path) -> list[Path]:
    """Draw the waterfall to PNG and SVG files; returns them.

    Raises:
        MachineError: the disk is full or the place can't be written to.
    """
    png, svg = place.with_suffix(".png"), place.with_suffix(".svg")
    with rc_context(STYLE):
        figure = waterfall(rows, fps)
        with replacing(png) as aside:
            save_png(figure, aside)
        with replacing(svg) as aside:
            figure.savefig(aside, format="svg", metadata={"Date": None})
    return [png, svg]


def _bar(axes: Axes, row: Row, y: float, colour: str, first: float, start: float) -> None:
    """What there was before, pale; what this row adds; and hatched what it takes away."""
    made = row["made"]
    axes.barh(y, min(start, made) - first, left=first, height=0.62, color=colour, alpha=0.22, lw=0)
    lost = {"facecolor": PAPER, "edgecolor": colour, "hatch": "////", "linewidth": 0.8}
    axes.barh(y, made - start, left=start, height=0.62, **({"color": colour} if made >= start else lost))
    told = f"{made:.0f}" if made >= 20 else f"{made:.1f}"
    axes.annotate(told, (max(made, start), y), xytext=(6, 0), textcoords="offset points", va="center", weight="bold")
    if made != first:
        place = (max(made, start), y)
        shift = (9 + 7.2 * len(told), 0)
        axes.annotate(factor(made / first), place, xytext=shift, textcoords="offset points", va="center", color=MUTED)
    _beside(axes, y, row["trick"], color=INK if made >= start else MUTED)
    for x, text in zip(COLUMNS, _told(row), strict=True):
        _at(axes, x, y, text)


def _told(row: Row) -> tuple[str, str, str]:
    first, jitter, missed = (row.get(name) for name in ("first_frame_s", "jitter_ms", "missed"))
    return (
        "" if first is None else f"{first:.2f} s",
        "" if jitter is None else f"{jitter:.1f} ms",
        "" if missed is None else str(missed),
    )


def _beside(axes: Axes, y: float, text: str, **style: Any) -> None:
    axes.text(LEFT, y, text, transform=axes.get_yaxis_transform(), va="center", **style)


def _at(axes: Axes, x: float, y: float, text: str) -> None:
    axes.text(x, y, text, transform=axes.get_yaxis_transform(), va="center", ha="right", color=MUTED)


def _axis(axes: Axes, made: Sequence[float]) -> None:
    low, high = 0.8 * min(made), 1.3 * max(made)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    ticks = [tick for tick in TICKS if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.tick_params(length=0)
    axes.set_yticks([])
    axes.spines[["left", "top", "right"]].set_visible(False)
    axes.set_xlabel("frames a second, and times as many as the first row (log scale)", color=MUTED)
