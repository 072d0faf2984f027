"""What a row's numbers mean beside the same model with fewer steps: a trick that loses to that is said to lose."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any

from fewstep.bench.report.schema import Row, Verdict

# Differences smaller than these are taken for none.
SPEED_MARGIN = 0.03  # of the speed-up
FRECHET_MARGIN = 0.03  # of the distance
PSNR_MARGIN = 0.5  # dB
WEAK = 0.5  # prompt accuracy of a baseline below which keeping its quality is no merit
BOUND_SLACK = 1.25  # over what the saved work allows, before a speed-up is called suspicious
WORK_KEYS = ("steps_reused", "steps_computed")  # counters of a cache, from which its saved work follows


def judged(row: Row, rows: Sequence[Row]) -> tuple[Verdict, str]:
    """The verdict on `row` among all `rows`, and the sentence that gives the reason."""
    if row.kind == "baseline":
        return "baseline", "Everything is compared with this."
    if row.kind == "steps":
        return "fewer steps", "The same weights with fewer steps: what every trick must beat."
    before = _named(rows, row.grows_from)
    if before is not None and row.speedup <= before.speedup * (1 + SPEED_MARGIN):
        return "slower", f"{row.speedup:.1f}× where {before.name!r} has {before.speedup:.1f}×: adds no speed."
    if row.speedup <= 1 + SPEED_MARGIN:
        return "slower", f"{row.speedup:.2f}×: no faster than the baseline."
    rivals = [
        r for r in rows if r.kind == "steps" and r.speedup >= row.speedup * (1 - SPEED_MARGIN) and as_good(r, row)
    ]
    if not rivals:
        return "wins", "No fewer-steps row is as fast and as good."
    closest = max(rivals, key=lambda r: r.psnr or 0.0)
    if row.psnr is not None and closest.psnr is not None and row.psnr > closest.psnr + PSNR_MARGIN:
        return "keeps the pictures", (
            f"{closest.name!r} is as fast and as good, but its pictures are further from the baseline's "
            f"({closest.psnr:.1f} dB, here {row.psnr:.1f} dB)."
        )
    return "loses", f"{closest.name!r} is as fast ({closest.speedup:.1f}×), as good and as close to the baseline."


def as_good(rival: Row, row: Row) -> bool:
    """Whether `rival` is at least as good as `row` in all that was measured of the set of pictures (else in PSNR)."""
    if row.frechet is None or rival.frechet is None:
        return (rival.psnr or 0.0) >= (row.psnr or 0.0) - PSNR_MARGIN
    one_prompt = 1 / row.samples
    accurate = (rival.prompt_accuracy or 0.0) >= (row.prompt_accuracy or 0.0) - one_prompt
    return accurate and rival.frechet <= row.frechet * (1 + FRECHET_MARGIN)


def weakness(row: Row) -> str | None:
    """A sentence when `row` is a baseline too poor for quality to be compared with, else None."""
    if row.kind != "baseline" or row.prompt_accuracy is None or row.prompt_accuracy >= WEAK:
        return None
    return (
        f"The baseline itself shows what its prompts asked for in {row.prompt_accuracy:.0%} of its pictures: "
        "speeds can be read here, verdicts on quality can't."
    )


def suspicion(row: Row, rows: Sequence[Row]) -> str | None:
    """A sentence when `row` is faster than its saved work allows, else None.

    The bound: evaluations saved (fewer steps, no guidance), times steps a cache reused, times the speed that the row's
    other tricks showed alone; a quarter is allowed on top, for tricks that help each other and for noise.
    """
    baseline = next(r for r in rows if r.kind == "baseline")
    if row is baseline:
        return None
    names = {engaged.name for engaged in row.engaged}
    saved = baseline.nfe / row.nfe * prod(reuse(engaged.facts) for engaged in row.engaged)
    kernels = prod(
        max(1.0, r.speedup) for r in rows if r.kind == "alone" and _only(r) in names and _is_kernel(r, baseline)
    )
    bound = saved * kernels * BOUND_SLACK
    if row.speedup <= bound or (row.kind == "alone" and _is_kernel(row, baseline)):
        return None
    return (
        f"{row.speedup:.1f}× is more than the saved work explains ({saved:.1f}× fewer evaluations, "
        f"{kernels:.2f}× from the other tricks alone): look for work that was skipped."
    )


def reuse(facts: dict[str, Any]) -> float:
    """Steps by computed steps, from a cache's counters; 1 where there are none."""
    reused, computed = (facts.get(key) for key in WORK_KEYS)
    if not isinstance(reused, int | float) or not isinstance(computed, int | float) or computed <= 0:
        return 1.0
    return (reused + computed) / computed


def idle(facts: dict[str, Any]) -> bool:
    """Whether a cache, by its counters, computed every step."""
    reused, computed = (facts.get(key) for key in WORK_KEYS)
    return reused == 0 and bool(computed)


def _is_kernel(row: Row, baseline: Row) -> bool:
    """Whether a row's trick makes evaluations cheaper rather than fewer."""
    return row.nfe >= baseline.nfe and all(reuse(engaged.facts) == 1 for engaged in row.engaged)


def _only(row: Row) -> str | None:
    return row.engaged[0].name if len(row.engaged) == 1 else None


def _named(rows: Iterable[Row], name: str | None) -> Row | None:
    return next((row for row in rows if row.name == name), None)
