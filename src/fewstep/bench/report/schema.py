"""What report.json holds. Everything that is shown anywhere is drawn from these values."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from fewstep.errors import InputError
from fewstep.files import read_json, write_json

VERSION: Literal[1] = 1
KEPT = 0.95  # of the baseline's prompt accuracy: what a row must keep to be the headline

Kind = Literal["baseline", "steps", "alone", "stack"]
Verdict = Literal[
    "baseline",  # what all is compared with
    "fewer steps",  # the same model with fewer steps: what all is compared with as well
    "wins",  # no fewer-steps row is as fast and as good
    "keeps the pictures",  # fewer steps are as fast and as good by the oracle, but change the pictures more
    "loses",  # a fewer-steps row is as fast, as good and as close to the baseline
    "slower",  # not faster than the row that it adds a trick to
]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class EngagedRow(_Value):
    """What one technique really did: its own counters, and its warnings after the run."""

    name: str
    facts: dict[str, Any]
    warnings: tuple[str, ...] = ()


class Row(_Value):
    """One setting, measured.

    seconds: median of a whole call, prompt to pixels, for one batch. speedup: median over the rounds of baseline
    seconds by these. denoiser_seconds: the part inside the denoiser. nfe: denoiser evaluations for each picture,
    guidance counted. peak_memory_mb: this row's weights plus the most that memory rose during a call. prompt_accuracy
    in [0, 1]; frechet, diversity: on the task's features; psnr (dB, 100: no difference) and ssim: to the baseline's
    pictures of the same seeds. What could not be measured without a task is null.
    """

    name: str
    kind: Kind
    nfe: float
    seconds: float
    speedup: float
    denoiser_seconds: float
    peak_memory_mb: float
    prompt_accuracy: float | None
    frechet: float | None
    psnr: float | None
    ssim: float | None
    diversity: float | None
    engaged: tuple[EngagedRow, ...]
    verdict: Verdict
    why: str
    warnings: tuple[str, ...] = ()
    samples: int
    runs: tuple[float, ...]  # seconds of each whole call, one a round
    setup_seconds: float  # loading and applying, calibration included; not part of `seconds`
    warmup_seconds: float  # the first call, compilation included; not part of `seconds`
    recipe: tuple[Any, ...]
    call: dict[str, Any]
    solver: str | None = None
    grows_from: str | None = None
    kept: bool | None = None  # of a stack row: whether the next rows build on it
    shown: tuple[bool | None, ...] = ()  # for each picture shown: whether the oracle sees what the prompt asked for


class NoiseFloor(_Value):
    """What differs when nothing should: read every difference against these."""

    baseline_spread: float  # (slowest − fastest) / median of the baseline's calls
    repeat_psnr: float | None  # the same baseline call twice, dB; 100: no difference
    compiled_psnr: float | None  # the same model compiled, dB
    accuracy_step: float  # what one prompt more or less answered changes prompt_accuracy by
    real_frechet: float | None  # of as many real pictures: what a perfect model would get here


class Skipped(_Value):
    """A row that could not be measured, and the sentence that says why."""

    name: str
    why: str


class Report(_Value):
    version: Literal[1] = VERSION
    title: str
    model: str
    task: str | None
    created: str  # ISO 8601, UTC
    command: str
    device: dict[str, Any]
    versions: dict[str, str]
    threads: int
    batch: int
    rounds: int
    samples: int
    total_seconds: float
    prompts: tuple[str, ...]  # of the pictures shown
    rows: tuple[Row, ...]
    skipped: tuple[Skipped, ...] = ()
    solvers_tried: dict[str, float] = {}  # name -> Fréchet distance (without a task: 100 − PSNR); the best has the row
    noise: NoiseFloor

    def row(self, name: str) -> Row:
        """The row of that name.

        Raises:
            InputError: there is none.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise InputError(f"The report has no row {name!r}: it has {', '.join(r.name for r in self.rows)}.")

    @property
    def baseline(self) -> Row:
        return next(row for row in self.rows if row.kind == "baseline")

    def of_kind(self, kind: Kind) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.kind == kind)

    @property
    def fastest(self) -> Row:
        """The fastest trick or stack, whatever its quality."""
        return max((*self.of_kind("alone"), *self.of_kind("stack")) or (self.baseline,), key=lambda row: row.speedup)

    @property
    def best(self) -> Row:
        """The fastest that keeps `KEPT` of the baseline's prompt accuracy; without a task, the fastest of all."""
        floor = KEPT * (self.baseline.prompt_accuracy or 0.0)
        rows = (*self.of_kind("alone"), *self.of_kind("stack"))
        good = [row for row in rows if (row.prompt_accuracy or 0.0) >= floor]
        return max(good, key=lambda row: row.speedup) if good else self.fastest

    def save(self, path: Path | str) -> None:
        write_json(path, self.model_dump(mode="json"))

    @staticmethod
    def load(path: Path | str) -> Report:
        """The report in a file.

        Raises:
            InputError: no file, no JSON, or not a report of this version.
        """
        try:
            return Report.model_validate(read_json(path))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"]) or "the whole"
            raise InputError(f"{path} is no report of version {VERSION}: {place}: {first['msg']}.") from None
