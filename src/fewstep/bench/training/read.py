"""A run's folder as values: its configuration, and the lines and sample grids of each of its stages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fewstep.distill.engine import checkpoint
from fewstep.distill.watching.record import Line, still_true, whole_lines
from fewstep.errors import CheckpointError, InputError
from fewstep.files import read_json

LOSSES = "losses.jsonl"


@dataclass(frozen=True)
class Stage:
    """One training, in a folder with `losses.jsonl`.

    Attributes:
        name: its folder in the run's; "" where the run is one training.
        losses, metrics, guard: their lines; losses and metrics without those of parts that were lost.
        settings: of the training loop and what identifies the run, from its newest checkpoint; may be empty.
        total: steps that the run is meant to take, None where nothing says it.
        samples: step -> its grid.
        teacher: the grid of the teacher, None where there is none.
    """

    name: str
    losses: tuple[Line, ...]
    metrics: tuple[Line, ...]
    guard: tuple[Line, ...]
    settings: Mapping[str, Any]
    total: int | None
    samples: Mapping[int, Path]
    teacher: Path | None

    @property
    def step(self) -> int:
        return int(self.losses[-1]["step"]) if self.losses else 0

    @property
    def seconds(self) -> float:
        """Of all its steps, looking at samples not counted."""
        return float(sum(line["seconds"] for line in self.losses))

    @cached_property
    def trained(self) -> tuple[str, ...]:
        """Names of the modules that it trains."""
        return tuple(dict.fromkeys(name for line in self.losses for name in line["loss"]))


@dataclass(frozen=True)
class Run:
    """A folder of training: `job` is its configuration, empty where there is no job.json; stages in their order."""

    folder: Path
    job: Mapping[str, Any]
    stages: tuple[Stage, ...]


def read_run(folder: Path | str) -> Run:
    """The run in a folder.

    Raises:
        InputError: there is no training in it, or a file in it is damaged.
    """
    folder = Path(folder)
    found = sorted((path.parent for path in folder.rglob(LOSSES)), key=lambda path: _order(path.relative_to(folder)))
    if not found:
        raise InputError(f"There is no training run in {folder}: neither it nor a folder in it has a {LOSSES}.")
    job = _job(folder)
    return Run(folder, job, tuple(_stage(folder, path, job) for path in found))


def _order(place: Path) -> list[Any]:
    """Numbers in names count: 2-kd stands before 10-kd."""
    parts = re.split(r"(\d+)", str(place))
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]


def _job(folder: Path) -> dict[str, Any]:
    path = folder / "job.json"
    value = read_json(path) if path.exists() else {}
    if not isinstance(value, dict):
        raise InputError(f"{path} must be a JSON object.")
    return value


def _stage(run: Path, folder: Path, job: Mapping[str, Any]) -> Stage:
    lines = {name: whole_lines(folder / f"{name}.jsonl")[0] for name in ("losses", "metrics", "guard")}
    losses, settings = still_true(lines["losses"]), _settings(folder)
    last = losses[-1]["step"] if losses else 0
    total = settings.get("steps", {**job, **_job(folder)}.get("iterations"))
    grids = {int(path.stem.removeprefix("step-")): path for path in sorted(folder.glob("samples/step-*.png"))}
    teacher = folder / "samples" / "teacher.png"
    return Stage(
        "" if folder == run else str(folder.relative_to(run)),
        tuple(losses),
        tuple(line for line in still_true(lines["metrics"]) if line["step"] <= last),
        tuple(lines["guard"]),
        settings,
        total if isinstance(total, int) else None,
        {step: path for step, path in grids.items() if step <= last},
        teacher if teacher.exists() else None,
    )


def _settings(folder: Path) -> dict[str, Any]:
    """What the newest readable checkpoint says of the run."""
    for place in reversed(checkpoint.saved(folder)):
        try:
            return dict(checkpoint.read_state(place).get("identity", {}))
        except CheckpointError:
            continue
    return {}
