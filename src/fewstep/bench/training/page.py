"""The page of a training run: one HTML file that asks the network for nothing, drawn from what the run wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from PIL import Image

from fewstep.bench.quality import Array
from fewstep.bench.report.page import environment, inline
from fewstep.bench.report.plots import as_svg
from fewstep.bench.report.style import STYLE
from fewstep.bench.training import plots, story
from fewstep.bench.training.read import Run, Stage, read_run
from fewstep.distill.watching.grid import Grid, read
from fewstep.files import write_text

WIDEST = 380  # pixels of a prompt's samples in the page: twice what a column shows, for sharp screens
DRAWS = {1: 4, 3: 2}  # frames of a sample -> how many samples of a prompt are shown
LONG = 12  # values of a list in the configuration; of longer ones the number is told


@dataclass(frozen=True)
class Shown:
    """A column of samples: a title, what it is, and an address of a picture for each prompt."""

    title: str
    note: str
    pictures: tuple[str, ...]


def report(run: Path | str) -> Path:
    """Draw `run/report.html`; returns it.

    Raises:
        InputError: there is no training run in that folder, or a file in it is damaged.
        MachineError: the disk is full or the place can't be written to.
    """
    found = read_run(run)
    path = found.folder / "report.html"
    write_text(path, render(found))
    return path


def render(run: Run) -> str:
    """The whole page as text."""
    found = environment()
    found.filters |= {"duration": story.duration, "plain": plain}
    with mpl.rc_context(STYLE):
        charts = [_charts(stage) for stage in run.stages]
    return found.get_template("training/training.html.j2").render(
        run=run,
        title=title(run),
        told=story.sentences(run),
        story=story,
        charts=charts,
        warnings=[story.warnings(stage) for stage in run.stages],
        samples=[samples(stage) for stage in run.stages],
        prompts=[_prompts(stage) for stage in run.stages],
        figures=_figures(run),
    )


def title(run: Run) -> str:
    """By what was configured, or by the folder's name."""
    teacher, steps = run.job.get("teacher"), run.job.get("steps")
    if not teacher or not steps:
        return f"The training in {run.folder.resolve().name}"
    return f"{teacher} in {steps} step{'s' if steps != 1 else ''}"


def _charts(stage: Stage) -> dict[str, str]:
    kinds = {"losses": plots.losses(stage), "metrics": plots.metrics(stage), "effort": plots.effort(stage)}
    if not stage.losses:
        return {}
    return {kind: as_svg(plots.draw(panels, stage)) if panels else "" for kind, panels in kinds.items()}


def _figures(run: Run) -> list[tuple[str, str]]:
    """Four numbers on top, each with what it is, for the last stage."""
    stage = run.stages[-1]
    top, of = story.best(stage), f" of {stage.total:,}" if stage.total else ""
    seconds = [line["seconds"] for one in run.stages for line in one.losses]
    where = f" of {stage.name}" if stage.name else ""
    found = [(f"{stage.step:,}", f"steps{of} done{where}")]
    if top is not None:
        found.append((f"{top.value:.3g}", f"the best {top.measure.replace('_', ' ')}, at step {top.step:,}"))
    if seconds:
        found.append((story.duration(sum(seconds)), "in training steps, looking at samples not counted"))
        found.append((story.duration(float(np.median(seconds))), "a step, the median"))
    return found


def samples(stage: Stage) -> list[Shown]:
    """The teacher, then the first grid, one from the middle, the best and the last; one that is two of them once."""
    columns = [] if stage.teacher is None else [Shown("Teacher", "its own steps", _cells(read(stage.teacher)))]
    if not stage.samples:
        return columns
    steps, top = sorted(stage.samples), story.best(stage)
    middle = min(steps, key=lambda step: abs(2 * step - steps[0] - steps[-1]))
    titles: dict[int, list[str]] = {}
    for name, step in (
        ("first", steps[0]),
        ("middle", middle),
        ("best", top.step if top else None),
        ("last", steps[-1]),
    ):
        if step is not None and step in stage.samples:
            titles.setdefault(step, []).append(name)
    for step, names in sorted(titles.items()):
        names = [name for name in names if name != "middle" or len(names) == 1]
        columns.append(Shown(", ".join(names).capitalize(), f"step {step:,}", _cells(read(stage.samples[step]))))
    return columns


def _prompts(stage: Stage) -> tuple[str, ...]:
    places = [path for path in (stage.teacher, *stage.samples.values()) if path is not None]
    return read(places[-1]).prompts if places else ()


def _cells(grid: Grid) -> tuple[str, ...]:
    return tuple(inline(_mosaic(row, grid.frames)) for row in grid.tiles)


def _mosaic(tiles: Array, frames: int) -> Array:
    """The first samples of a prompt beside and below each other, values in [0, 1]; a video's frames in one row."""
    shown = min(len(tiles), DRAWS[frames] * frames)
    across = 3 if frames == 3 else 1 if shown == 1 else 2
    shown -= shown % across
    rows = [np.concatenate(list(tiles[i : i + across]), axis=1) for i in range(0, shown, across)]
    whole = Image.fromarray(np.concatenate(rows, axis=0))
    if whole.width > WIDEST:
        whole = whole.resize((WIDEST, round(whole.height * WIDEST / whole.width)), Image.Resampling.LANCZOS)
    return np.asarray(whole) / 255


def plain(value: Any) -> str:
    """A value of the configuration for people."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(inner)}" for key, inner in value.items() if inner is not None) or "none"
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) > LONG:
            return f"{len(value):,} values"
        return "; ".join(plain(inner) for inner in value) or "none"
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value)
