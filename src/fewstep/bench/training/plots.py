"""Curves of a training: small panels that share their steps, with the guard's verdicts on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from fewstep.bench.report.plots import COLOURS
from fewstep.bench.report.style import INK, LINE, MUTED, PAPER
from fewstep.bench.training import story
from fewstep.bench.training.read import Stage

Array = NDArray[np.float64]

CURVE, POINTS, BAD = COLOURS["stack"], COLOURS["alone"], "#b4443c"
DENSE = 800  # points of a raw curve; more are drawn as the least and the most of each piece
SMOOTH = 250  # points of a running median
LOG = 30  # a curve that spans more than this factor gets a log axis
COLUMNS = 2


@dataclass(frozen=True, eq=False)
class Panel:
    """One curve: `raw` is faint under its running median; what is `sparse` is drawn with its points."""

    title: str
    steps: Array
    values: Array
    raw: bool = True
    sparse: bool = False
    best: int | None = None  # a step to mark
    line: tuple[str, float] | None = None  # a level with its name


def losses(stage: Stage) -> list[Panel]:
    return [Panel(f"loss of {name}", *_column(stage, "loss", name)) for name in stage.trained]


def metrics(stage: Stage) -> list[Panel]:
    """Arrows say which way is better."""
    panels = []
    for name in story.measures(stage):
        found = [(line["step"], line[name]) for line in stage.metrics if isinstance(line.get(name), int | float)]
        steps, values = np.array(found, dtype=np.float64).reshape(-1, 2).T
        top, arrow = story.best(stage, name), {1: "  ↑", -1: "  ↓", 0: ""}[story.side(name)]
        panels.append(
            Panel(name.replace("_", " ") + arrow, steps, values, raw=False, sparse=True, best=top.step if top else None)
        )
    return panels


def effort(stage: Stage) -> list[Panel]:
    """Gradients, rate and time."""
    clip = stage.settings.get("clip")
    level = ("clip", float(clip)) if clip else None
    norms = [Panel(f"gradient norm of {n}", *_column(stage, "gradient", n), line=level) for n in stage.trained]
    steps = np.array([line["step"] for line in stage.losses], dtype=np.float64)
    rate, seconds = (np.array([line[key] for line in stage.losses], dtype=np.float64) for key in ("rate", "seconds"))
    return [*norms, Panel("rate", steps, rate, raw=False), Panel("seconds a step", steps, seconds)]


def draw(panels: Sequence[Panel], stage: Stage) -> Figure:
    """The panels in two columns."""
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    height = 0.35 + 2.35 * rows
    figure = Figure(figsize=(11, height), facecolor=PAPER)
    grid = figure.add_gridspec(rows, columns, left=0.06, right=0.985, top=1 - 0.32 / height, bottom=0.38 / height,
                               hspace=0.45, wspace=0.16)  # fmt: skip
    end = max(stage.step, 1)
    for place, panel in enumerate(panels):
        axes = figure.add_subplot(grid[place // columns, place % columns])
        _panel(axes, panel)
        _verdicts(axes, stage)
        axes.set_xlim(0, 1.02 * end)
    return figure


def _panel(axes: Axes, panel: Panel) -> None:
    sound = np.isfinite(panel.values)
    steps, values = panel.steps[sound], panel.values[sound]
    axes.set_title(panel.title, loc="left", fontsize=10, fontweight="bold", color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=LINE, lw=0.7)
    axes.tick_params(length=0, labelsize=8.5, labelcolor=MUTED)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    if not len(values):
        axes.text(0.5, 0.5, "no finite value", transform=axes.transAxes, ha="center", color=BAD)
        return
    if panel.raw and len(values) >= 10:
        axes.plot(*thinned(steps, values), color=CURVE, alpha=0.25, lw=0.7)
        axes.plot(*running_median(steps, values), color=CURVE, lw=1.8)
    else:
        style: dict[str, Any] = {"marker": "o", "ms": 3.5, "color": POINTS} if panel.sparse else {"color": CURVE}
        axes.plot(steps, values, lw=1.6, **style)
    _heights(axes, values, panel)
    if panel.line is not None:
        name, level = panel.line
        axes.axhline(level, color=COLOURS["steps"], lw=1, ls=(0, (4, 3)))
        axes.text(0.995, level, name, color=COLOURS["steps"], ha="right", va="bottom", size=8,
                  transform=axes.get_yaxis_transform())  # fmt: skip
    if panel.best is not None:
        value = float(values[steps == panel.best][0])
        axes.plot([panel.best], [value], marker="o", ms=8, mfc="none", mec=CURVE, mew=1.8, zorder=4)
        told = f"best {value:.4g} at step {panel.best:,}"
        axes.set_title(told, loc="right", fontsize=8.5, fontweight="bold", color=CURVE)


def _heights(axes: Axes, values: Array, panel: Panel) -> None:
    """A range that a few wild values don't rule; logarithmic where the curve spans decades."""
    low, high = np.percentile(values, [0.5, 99.5]) if panel.raw else (values.min(), values.max())
    if panel.line is not None:
        low, high = min(low, panel.line[1]), max(high, panel.line[1])
    if low > 0 and high / low > LOG and not panel.sparse and panel.raw:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))  # a new scale brings its own
        axes.set_ylim(low / 1.3, high * 1.3)
        axes.minorticks_off()
        return
    margin = 0.12 * (high - low) or 0.1 * abs(high) or 0.1
    axes.set_ylim(low - margin, high + margin)
    axes.yaxis.set_major_locator(MaxNLocator(5))


def _short(value: float) -> str:
    """0.25, 3e-4, 12,000."""
    if 0 < abs(value) < 1e-3:
        return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def _verdicts(axes: Axes, stage: Stage) -> None:
    """Lines where the guard went back or stopped, small marks on the axis where it kept a best."""
    for line in stage.guard:
        if line["action"] in ("back", "stop"):
            axes.axvline(line["step"], color=BAD, lw=1.1, ls="-" if line["action"] == "stop" else (0, (3, 2)))
    kept = [line["step"] for line in stage.guard if line["action"] == "keep"]
    axes.plot(kept, [0.0] * len(kept), "^", ms=4.5, color=CURVE, transform=axes.get_xaxis_transform(), clip_on=False,
              zorder=5)  # fmt: skip


def thinned(steps: Array, values: Array) -> tuple[Array, Array]:
    """A long curve by the least and the most of each piece: no spike is lost."""
    if len(values) <= DENSE:
        return steps, values
    pieces = np.array_split(np.arange(len(values)), DENSE // 2)
    ends = [sorted((p[values[p].argmin()], p[values[p].argmax()])) for p in pieces]
    chosen = np.array(ends).ravel()
    return steps[chosen], values[chosen]


def running_median(steps: Array, values: Array) -> tuple[Array, Array]:
    """Of a fortieth of the curve about each point, at `SMOOTH` points or fewer."""
    half = max(2, len(values) // 80)
    centres = np.unique(np.linspace(0, len(values) - 1, SMOOTH).round().astype(int))
    medians = [np.median(values[max(0, c - half) : c + half + 1]) for c in centres]
    return steps[centres], np.array(medians)


def _column(stage: Stage, kind: str, name: str) -> tuple[Array, Array]:
    found = [(line["step"], line[kind][name]) for line in stage.losses if name in line[kind]]
    steps, values = np.array(found, dtype=np.float64).reshape(-1, 2).T
    return steps, values
