"""From records to the rows of the report: medians, quality, verdicts."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fewstep.bench.quality import SAME, Array, psnr, ssim
from fewstep.bench.report.schema import NoiseFloor, Row
from fewstep.bench.session import Record
from fewstep.bench.timing import spread
from fewstep.bench.verdict import judged, suspicion, weakness
from fewstep.zoo import metrics
from fewstep.zoo.evaluate import REAL, REAL_SEED
from fewstep.zoo.metrics import frechet
from fewstep.zoo.tasks import Task

VARIED = 256  # of the real pictures, those whose differences diversity is a part of


@dataclass(frozen=True)
class Judge:
    """The oracle's side: what each prompt asked, and the real pictures. Without a task it measures nothing."""

    task: Task | None
    asks: tuple[Any, ...]

    @cached_property
    def real(self) -> Any:
        """Features of the real pictures that every row is compared with."""
        assert self.task is not None
        return self.task.features(self.task.reference(REAL, REAL_SEED))

    def quality(self, pictures: Array, shown: int) -> dict[str, Any]:
        """prompt_accuracy, frechet and diversity of pictures of the first prompts, and which of `shown` are right.

        Diversity is taken over all prompts: how far the pictures differ, as a part of how far real ones do.
        """
        if self.task is None:
            return {"prompt_accuracy": None, "frechet": None, "diversity": None, "shown": (None,) * shown}
        features = self.task.features(pictures)
        correct = self.task.correct(self.asks[: len(pictures)], pictures)
        return {
            "prompt_accuracy": statistics.fmean(correct),
            "frechet": frechet(features, self.real),
            "diversity": metrics.spread(features) / metrics.spread(self.real[:VARIED]),
            "shown": tuple(correct[:shown]),
        }

    def distance(self, pictures: Array, baseline: Array) -> float:
        """How bad a set of pictures is: its Fréchet distance; without a task how far it is from the baseline's."""
        if self.task is None:
            return SAME - psnr(pictures, baseline)
        return frechet(self.task.features(pictures), self.real)

    def real_frechet(self, samples: int) -> float | None:
        """The distance that as many real pictures have: the best possible figure at this number of samples."""
        if self.task is None:
            return None
        return frechet(self.task.features(self.task.reference(samples, REAL_SEED + 1)), self.real)


def rows_of(
    records: Mapping[str, Record], judge: Judge, kept: Mapping[str, bool], pictures_shown: int
) -> tuple[Row, ...]:
    """One judged row for each record, in their order; the first is the baseline."""
    baseline = next(iter(records.values())).all_pictures
    rows = [_row(record, baseline, judge, kept.get(name), pictures_shown) for name, record in records.items()]
    return tuple(_with_verdict(row, rows) for row in rows)


def _row(record: Record, baseline: Array, judge: Judge, kept: bool | None, pictures_shown: int) -> Row:
    pictures, candidate = record.all_pictures, record.candidate
    fidelity = (
        {"psnr": psnr(pictures, baseline), "ssim": ssim(pictures, baseline)} if _alike(pictures, baseline) else {}
    )
    return Row(
        name=candidate.name,
        kind=candidate.kind,
        nfe=round(statistics.median(run.nfe for run in record.runs), 2),
        seconds=statistics.median(run.seconds for run in record.runs),
        speedup=record.speedup,
        denoiser_seconds=statistics.median(run.denoiser_seconds for run in record.runs),
        peak_memory_mb=record.memory_mb,
        psnr=fidelity.get("psnr"),
        ssim=fidelity.get("ssim"),
        **judge.quality(pictures, pictures_shown),
        engaged=record.engaged,
        verdict="baseline",
        why="",
        warnings=tuple(warning for engaged in record.engaged for warning in engaged.warnings),
        samples=len(pictures),
        runs=tuple(run.seconds for run in record.runs),
        setup_seconds=record.setup_seconds,
        warmup_seconds=record.warmup_seconds,
        recipe=candidate.recipe,
        call=dict(candidate.call),
        solver=candidate.solver,
        grows_from=candidate.grows_from,
        kept=kept,
    )


def _alike(pictures: Array, baseline: Array) -> bool:
    return pictures.shape == baseline.shape and min(pictures.shape[-3:-1]) >= 11


def _with_verdict(row: Row, rows: Sequence[Row]) -> Row:
    verdict, why = judged(row, rows)
    doubts = tuple(doubt for doubt in (weakness(row), suspicion(row, rows)) if doubt)
    return row.model_copy(update={"verdict": verdict, "why": why, "warnings": (*row.warnings, *doubts)})


def noise_floor(baseline: Record, repeat: Array, rows: Sequence[Row], judge: Judge) -> NoiseFloor:
    """`repeat`: the pictures of the baseline's first batch, made a second time."""
    first = baseline.pictures[0]
    samples = len(baseline.all_pictures)
    compiled = next((row for row in rows if row.kind == "alone" and _names(row) == ["compile"]), None)
    return NoiseFloor(
        baseline_spread=spread([run.seconds for run in baseline.runs]),
        repeat_psnr=psnr(repeat, first) if repeat.shape == first.shape else SAME,
        compiled_psnr=compiled.psnr if compiled else None,
        accuracy_step=1 / samples,
        real_frechet=judge.real_frechet(samples),
    )


def _names(row: Row) -> list[str]:
    return [engaged.name for engaged in row.engaged]
