"""What a cache or regions spared in the last request, as a picture: step by step, branch by branch, token by token."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fewstep.bench.report.style import INK, LINE, MUTED, PAPER

SIGNS = {"#": ("#0f7c70", "computed"), "o": ("#7cc4b8", "its moving part computed"), ".": ("#e3e7ec", "reused")}
DRAWN = ("last_request", "foretold", "measured", "computed", "grid")  # the facts that the picture shows
HEAT = LinearSegmentedColormap.from_list("computed", [SIGNS["."][0], SIGNS["#"][0]])
COLOURS = ("#d9922e", "#7b8fb5", "#b05279", "#5b8c3a")  # of branches


def figure(facts: dict[str, Any]) -> Figure | None:
    """From the facts of a `cache` or of `regions`; None where the last request told nothing."""
    told: dict[str, str] = facts.get("last_request") or {}
    if not told:
        return None
    errors = bool(facts.get("foretold") or facts.get("measured"))
    maps = {branch: times for branch, times in (facts.get("computed") or {}).items() if times}
    inches = [0.5 + 0.32 * len(told), 2.2 if errors else 0.0, 1.9 * len(maps)]
    inches = [inch for inch in inches if inch]
    drawn = Figure(figsize=(9.6, sum(inches) + 0.8), facecolor=PAPER, layout="constrained")
    rows = drawn.subfigures(len(inches), 1, height_ratios=inches, squeeze=False)[:, 0]
    _strips(rows[0].subplots(), told)
    if errors:
        _errors(rows[1].subplots(), facts, len(next(iter(told.values()))))
    if maps:
        _maps(rows[-1], maps, facts["grid"])
    return drawn


def _strips(axes: Axes, told: dict[str, str]) -> None:
    """A row of cells for each branch, a cell a step."""
    for y, signs in enumerate(told.values()):
        for step, sign in enumerate(signs):
            axes.barh(y, 0.92, left=step + 0.54, height=0.78, color=SIGNS[sign][0], lw=0)
    axes.set_yticks(range(len(told)), list(told))
    axes.set_ylim(len(told) - 0.4, -0.6)
    axes.set_xlim(0.4, max(map(len, told.values())) + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("step", color=MUTED)
    axes.spines[:].set_visible(False)
    axes.tick_params(left=False)
    used = [SIGNS[sign] for sign in SIGNS if any(sign in signs for signs in told.values())]
    handles = [axes.barh(0, 0, color=colour, label=label) for colour, label in used]
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, frameon=False, labelcolor=INK)


def _errors(axes: Axes, facts: dict[str, Any], steps: int) -> None:
    """What the gate foretold at each step, against its threshold; and what a forecast was measured to miss by."""
    for colour, branch in zip(COLOURS * 2, facts["last_request"], strict=False):
        for name, marker, line in (("foretold", ".", "-"), ("measured", "x", "none")):
            points = (facts.get(name) or {}).get(branch, [])
            if points:
                x, y = zip(*points, strict=True)
                axes.plot([step + 1 for step in x], y, color=colour, marker=marker, ls=line, label=f"{name}, {branch}")
    threshold = facts.get("threshold")
    if threshold is not None:
        axes.axhline(threshold, color=INK, lw=0.8, ls=(0, (4, 4)))
        axes.annotate(f"threshold {threshold:g}", (0.995, threshold), xycoords=("axes fraction", "data"), ha="right",
                      va="bottom", color=INK, size=9)  # fmt: skip
    axes.set_xlim(0.4, steps + 0.6)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("error of reuse", color=MUTED)
    axes.grid(color=LINE, lw=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, labelcolor=INK, fontsize=8.5)


def _maps(figure: Any, maps: dict[str, list[float]], grid: list[int]) -> None:
    """How often each token was computed in the steps that computed only some, frame by frame."""
    frames = grid[0] if len(grid) == 3 else 1
    panels = figure.subplots(len(maps), frames, squeeze=False)
    most = max(max(times) for times in maps.values())
    for row, (branch, times) in zip(panels, maps.items(), strict=True):
        planes = np.array(times).reshape(frames, *(grid[-2:] if len(grid) > 1 else (1, -1)))
        for frame, (axes, plane) in enumerate(zip(row, planes, strict=True)):
            image = axes.imshow(plane, cmap=HEAT, vmin=0, vmax=most)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            if frames > 1:
                axes.set_title(f"latent frame {frame + 1}", size=9, color=MUTED)
        row[0].set_ylabel(branch, size=9)
    bar = figure.colorbar(image, ax=panels, shrink=0.8, pad=0.01)
    bar.set_label("times computed", color=MUTED)
    bar.outline.set_visible(False)
