"""A run as TensorBoard event files: `tensorboard --logdir run/tensorboard`, and the reading of its line files.

    recorder = Recorder("run")
    train(distiller, batches, "run", settings, watch=each(gallery, recorder))
    recorder.close()

It reads what the run writes anyway, `losses.jsonl`, `metrics.jsonl`, `guard.jsonl` and the sample grids, so it takes
part in nothing, and a run that was trained without it can be recorded afterwards. A run that goes on, or back, says
from which step on (`purge_step`), so that TensorBoard shows every step once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fewstep.errors import InputError, MachineError

Line = dict[str, Any]


def whole_lines(path: Path, start: int = 0) -> tuple[list[Line], int]:
    """The lines of a JSONL file from byte `start`, and where they end; one that a kill cut in two is left out.

    Raises:
        InputError: a line is not a JSON object with a step.
    """
    if not path.exists():
        return [], start
    with path.open("rb") as file:
        file.seek(start)
        data = file.read()
    data = data[: data.rfind(b"\n") + 1]
    found = []
    for number, text in enumerate(data.splitlines()):
        try:
            line = json.loads(text)
            found.append({**line, "step": int(line["step"])})
        except (ValueError, TypeError, KeyError):
            raise InputError(f"{path} is damaged: its line {number + 1} is no JSON object with a 'step'.") from None
    return found, start + len(data)


def still_true(lines: Sequence[Line]) -> list[Line]:
    """Without the lines of a part of the run that was lost: a later line replaces all of its step and above."""
    kept: list[Line] = []
    for line in reversed(lines):
        if not kept or line["step"] < kept[-1]["step"]:
            kept.append(line)
    return kept[::-1]


class Recorder:
    """Called after each step; writes what is new in the run's folder to `folder/tensorboard`, and flushes it.

    Raises:
        MachineError: the package `tensorboard` is not installed.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder, self._writers = Path(folder), _summary_writer()
        self._writer: Any = None
        self._last = 0  # the step of the last call
        self._from = 1  # the first step that this writer writes
        self._read: dict[str, int] = {}  # bytes of each file
        self._teacher_is_due = False

    def __call__(self, step: int, averages: Mapping[str, Any] | None = None) -> None:
        """After this step, counted from 1; one that is not above the last means that the run went back."""
        if self._writer is None or step <= self._last:
            self._open(step)
        self._write_new()
        self._last = step

    def close(self) -> None:
        """Write what came after the last step, a verdict for one, and close the file."""
        if self._writer is not None:
            self._write_new()
            self._writer.close()
            self._writer = None

    def _open(self, step: int) -> None:
        place = self.folder / "tensorboard"
        goes_on = any(place.glob("events.out.tfevents.*"))
        if self._writer is not None:
            self._writer.close()
        self._from, self._read = step if goes_on else 1, {}
        self._writer = self._writers(str(place), purge_step=step if goes_on else None)
        drawn, _ = whole_lines(self.folder / "metrics.jsonl")
        self._teacher_is_due = not any(line["step"] < self._from for line in drawn)

    def _write_new(self) -> None:
        for name, write in (("losses", self._loss), ("metrics", self._metrics), ("guard", self._verdict)):
            path, start = self.folder / f"{name}.jsonl", self._read.get(name, 0)
            lines, self._read[name] = whole_lines(path, start)
            for line in lines if name == "guard" else still_true(lines):
                if line["step"] >= self._from:
                    write(line)
        self._writer.flush()

    def _loss(self, line: Line) -> None:
        for kind in ("loss", "gradient"):
            self._scalars(f"{kind}/", line[kind], line["step"])
        self._scalars("", {name: line[name] for name in ("rate", "seconds")}, line["step"])

    def _metrics(self, line: Line) -> None:
        self._scalars("metrics/", line, line["step"])
        self._picture("student", f"step-{line['step']:08d}", line["step"])
        if self._teacher_is_due:
            self._picture("teacher", "teacher", line["step"])
            self._teacher_is_due = False

    def _verdict(self, line: Line) -> None:
        self._scalars("guard/", line, line["step"])
        self._writer.add_text("guard/verdict", f"**{line['action']}**: {line['reason']}", line["step"])

    def _scalars(self, prefix: str, values: Mapping[str, Any], step: int) -> None:
        for name, value in values.items():
            if name != "step" and isinstance(value, int | float):
                self._writer.add_scalar(prefix + name, float(value), step)

    def _picture(self, tag: str, name: str, step: int) -> None:
        path = self.folder / "samples" / f"{name}.png"
        if path.exists():
            with Image.open(path) as sheet:
                pixels = np.asarray(sheet.convert("RGB"))
            self._writer.add_image(f"samples/{tag}", pixels, step, dataformats="HWC")


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MachineError(
            "TensorBoard event files were asked for and the package 'tensorboard' is not installed: "
            "pip install 'fewstep[train]', or train without them."
        ) from None
    return SummaryWriter
