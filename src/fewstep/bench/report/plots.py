"""The report's two charts: the waterfall of speed-ups, and speed against quality."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fewstep.bench.report.schema import Kind, Report, Row
from fewstep.bench.report.style import INK, LINE, MUTED, PAPER

COLOURS: dict[Kind, str] = {"baseline": "#9aa5b1", "steps": "#d9922e", "alone": "#7b8fb5", "stack": "#0f7c70"}
WIDTH = 34  # letters of a name beside its bar
POINT_COLOURS: dict[Kind, str] = COLOURS | {"baseline": INK}
TITLES: dict[Kind, str] = {
    "baseline": "Baseline",
    "steps": "The same model with fewer steps",
    "alone": "Each trick alone",
    "stack": "The stack, growing",
}


def waterfall(report: Report) -> Figure:
    """Bars of speed-up on a log axis: what each trick does alone, then what each adds to the stack."""
    groups = _groups(report)
    places = _places([len(rows) for _, rows in groups])
    height = 1.0 + 0.34 * (places[-1][-1] + 1.4)
    figure = Figure(figsize=(9.6, height), facecolor=PAPER)
    axes = figure.add_axes((0.28, 0.5 / height, 0.60, 1 - 0.65 / height))
    for (kind, rows), ys in zip(groups, places, strict=True):
        if kind != "baseline":
            _beside(axes, ys[0] - 0.95, TITLES[kind], weight="bold")
        for row, y in zip(rows, ys, strict=True):
            _bar(axes, report, row, y, kind)
    if report.task:
        axes.text(1.19, -0.85, "right", transform=axes.get_yaxis_transform(), va="center", ha="right", color=MUTED)
    speeds = [row.speedup for row in report.rows]
    _log_axis(axes, min(0.8, 0.8 * min(speeds)), 1.45 * max(speeds))
    axes.set_ylim(places[-1][-1] + 0.7, -1.2)
    axes.set_yticks([])
    axes.axvline(1, color=MUTED, lw=0.8, zorder=0)
    axes.spines[["left", "top", "right"]].set_visible(False)
    axes.set_xlabel("times as fast as the baseline, whole call (log scale)", color=MUTED)
    return figure


def _groups(report: Report) -> list[tuple[Kind, tuple[Row, ...]]]:
    """The rows by kind; the stack begins with the row that it grows from."""
    stack = report.of_kind("stack")
    start = _before(report, stack[0]) if stack else None
    if start is not None and start.kind != "baseline":
        stack = (start, *stack)
    kinds: tuple[Kind, ...] = ("baseline", "steps", "alone")
    groups = [(kind, report.of_kind(kind)) for kind in kinds]
    return [(kind, rows) for kind, rows in (*groups, ("stack", stack)) if rows]


def _places(sizes: Sequence[int]) -> list[list[float]]:
    """The heights of the bars: groups with room for a heading between them."""
    places, y = [], 0.0
    for size in sizes:
        places.append([y + i for i in range(size)])
        y += size + 1.35
    return places


def _bar(axes: Axes, report: Report, row: Row, y: float, kind: Kind) -> None:
    colour, before = COLOURS[kind], _before(report, row)
    gains = row.verdict not in ("slower", "loses")
    start = before.speedup if before else 1.0
    if before:  # what the stack had before this trick, pale
        axes.barh(y, min(start, row.speedup) - 1, left=1, height=0.62, color=colour, alpha=0.22, lw=0)
    style = {"color": colour} if gains else {"facecolor": PAPER, "edgecolor": colour, "hatch": "////", "linewidth": 0.8}
    axes.barh(y, row.speedup - start, left=start, height=0.62, **style)
    axes.annotate(factor(row.speedup), (max(row.speedup, start, 1), y), xytext=(6, 0), textcoords="offset points",
                  va="center", weight="bold")  # fmt: skip
    _beside(axes, y, short_name(report, row), color=INK if gains else MUTED)
    axes.text(1.19, y, _quality(row), transform=axes.get_yaxis_transform(), va="center", ha="right", color=MUTED)


def _beside(axes: Axes, y: float, text: str, **style: Any) -> None:
    text = fill(text, WIDTH)  # a name that is longer would run into its bar
    axes.text(-0.455, y, text, transform=axes.get_yaxis_transform(), va="center", linespacing=1.0, **style)


def _before(report: Report, row: Row) -> Row | None:
    return next((other for other in report.rows if other.name == row.grows_from), None)


def short_name(report: Report, row: Row) -> str:
    """The row's name; of a row that adds one trick to another only what it adds."""
    before = _before(report, row)
    return f"+ {row.name.rsplit(' + ', 1)[1]}" if before and " + " in row.name else row.name


def _quality(row: Row) -> str:
    if row.prompt_accuracy is not None:
        return f"{row.prompt_accuracy:.0%}"
    return "" if row.psnr is None else f"{row.psnr:.1f} dB"


def speed_quality(report: Report) -> Figure:
    """Speed-up (log) against the Fréchet distance (log, better is up), or against PSNR where there is no task."""
    figure = Figure(figsize=(9.6, 6.0), facecolor=PAPER)
    axes = figure.add_axes((0.09, 0.12, 0.87, 0.82))
    speeds = [row.speedup for row in report.rows]
    _log_axis(axes, 0.8 * min(speeds), 1.5 * max(speeds))
    _quality_axis(axes, report)
    for kind in ("steps", "alone", "stack", "baseline"):
        rows = [row for row in report.rows if row.kind == kind]
        axes.scatter(*_xy(rows, report), s=64, color=POINT_COLOURS[kind], label=TITLES[kind], edgecolor=PAPER, zorder=3)
    fewer = [row for row in report.rows if row.kind in ("baseline", "steps") and row.solver is None]
    axes.plot(*_xy(fewer, report), color=COLOURS["steps"], lw=1.2, alpha=0.6, zorder=1)
    _name_points(axes, [(short_name(report, row), *_xy([row], report)) for row in report.rows])
    axes.set_xlabel("times as fast as the baseline, whole call (log scale)", color=MUTED)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=LINE, lw=0.7, zorder=0)
    axes.legend(frameon=False, loc="lower left", labelcolor=INK)
    return figure


def _xy(rows: Sequence[Row], report: Report) -> tuple[list[float], list[float]]:
    """Speed-ups and qualities of the rows, slowest first; rows whose quality was not measured are left out."""
    found = [(row.speedup, row.frechet if report.task else row.psnr) for row in rows]
    points = sorted((speed, quality) for speed, quality in found if quality is not None)
    return [speed for speed, _ in points], [quality for _, quality in points]


def _quality_axis(axes: Axes, report: Report) -> None:
    if not report.task:
        axes.set_ylabel("PSNR to the baseline, dB  (better ↑)", color=MUTED)
        return
    axes.set_yscale("log")
    heights = [row.frechet for row in report.rows if row.frechet] + [report.noise.real_frechet or float("inf")]
    low, high = 0.72 * min(heights), 1.35 * max(h for h in heights if h != float("inf"))
    ticks = [d * 10.0**e for e in range(-6, 8) for d in (1, 2, 5) if low <= d * 10.0**e <= high]
    axes.set_ylim(high, low)
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylabel("Fréchet distance  (better ↑)", color=MUTED)
    if report.noise.real_frechet:
        axes.axhline(report.noise.real_frechet, color=MUTED, lw=0.9, ls=(0, (4, 4)))
        axes.text(0.995, report.noise.real_frechet, f"{report.samples} real pictures ", color=MUTED, va="bottom",
                  ha="right", transform=axes.get_yaxis_transform(), size=9)  # fmt: skip


def _name_points(axes: Axes, points: Sequence[tuple[str, list[float], list[float]]]) -> None:
    """Names beside the points, (name, [x], [y]), each at the nearest place that covers no point and no other name."""
    axes.figure.canvas.draw()
    scale = axes.figure.dpi / 72
    at = [(name, *(axes.transData.transform((x[0], y[0])) / scale)) for name, x, y in points if x]
    taken = [_Box(x - 5, y - 5, x + 5, y + 5) for _, x, y in at]  # in 1/72 inch, as the size of names is
    inside = _Box(*(edge / scale for edge in axes.bbox.extents))
    for name, x, y in sorted(at, key=lambda point: point[1]):
        boxes = [_Box.of_name(name, x + dx, y + dy) for dy in SHIFTS for dx in (9, -9 - _Box.width(name))]
        free = [box for box in boxes if box.within(inside) and not any(box.meets(other) for other in taken)]
        box = free[0] if free else boxes[0]
        taken.append(box)
        if abs(box.middle - y) > 7:  # a thin line leads from a far name to its point
            near = box.left if box.left > x else box.right
            axes.annotate("", (x, y), (near, box.middle), xycoords=POINTS, textcoords=POINTS, arrowprops=LEADER)
        axes.annotate(name, (box.left, box.middle), xycoords=POINTS, va="center", size=8.5, color=INK)


POINTS = "figure points"
LEADER = {"arrowstyle": "-", "color": "#b8c0c9", "lw": 0.6}
SHIFTS = sorted(range(-143, 144, 13), key=abs)


class _Box(NamedTuple):
    left: float
    bottom: float
    right: float
    top: float

    @property
    def middle(self) -> float:
        return (self.bottom + self.top) / 2

    @staticmethod
    def width(name: str) -> float:
        return 4.7 * len(name) + 4

    @classmethod
    def of_name(cls, name: str, left: float, middle: float) -> _Box:
        return cls(left, middle - 6, left + cls.width(name), middle + 6)

    def meets(self, other: _Box) -> bool:
        return (
            self.left < other.right and other.left < self.right and self.bottom < other.top and other.bottom < self.top
        )

    def within(self, other: _Box) -> bool:
        return (
            other.left <= self.left
            and self.right <= other.right
            and other.bottom <= self.bottom
            and self.top <= other.top
        )


def _log_axis(axes: Axes, low: float, high: float) -> None:
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if low <= t <= high]
    axes.set_xticks(ticks, [f"{t:g}×" for t in ticks])
    axes.minorticks_off()
    axes.tick_params(length=0)


def factor(speedup: float) -> str:
    """A speed-up with two or three digits that mean something: 0.87×, 1.42×, 42.3×, 118×."""
    digits = 0 if speedup >= 100 else 1 if speedup >= 10 else 2
    return f"{speedup:.{digits}f}×"


def as_svg(figure: Figure) -> str:
    """The figure as an SVG element, to stand inside a page."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def save_png(figure: Figure, path: Path) -> None:
    figure.savefig(path, format="png", dpi=160)
