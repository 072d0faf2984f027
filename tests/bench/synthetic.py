"""A made-up report for tests of what is drawn: none of its numbers was measured."""

from __future__ import annotations

from typing import Any

import numpy as np

from fewstep.bench.report.schema import EngagedRow, NoiseFloor, Report, Row, Skipped
from fewstep.bench.verdict import judged

PROMPTS = (
    "a red ring",
    "a small striped green square left of a large blue circle on a wavy teal background",
    "three small cyan crosses",
    "an image of a big orange triangle above a checked pink diamond",
)


def row(name: str, kind: str, nfe: float, speedup: float, accuracy: float | None, frechet: float | None, psnr: float,
        *engaged: EngagedRow, **more: Any) -> Row:  # fmt: skip
    values: dict[str, Any] = {
        "name": name, "kind": kind, "nfe": nfe, "seconds": 7.4 / speedup, "speedup": speedup,
        "denoiser_seconds": 7.1 / speedup, "peak_memory_mb": 160.0, "prompt_accuracy": accuracy, "frechet": frechet,
        "psnr": psnr, "ssim": min(1.0, psnr / 45), "diversity": 1.9, "engaged": engaged, "verdict": "baseline", "why":
        "", "samples": 64, "runs": (7.4 / speedup,) * 4, "setup_seconds": 0.4, "warmup_seconds": 0.5, "recipe": (),
        "call": {}, "shown": (True, True, False, True) if accuracy is not None else (None,) * 4,
    }  # fmt: skip
    return Row(**(values | more))


def _engaged(name: str, **facts: Any) -> EngagedRow:
    return EngagedRow(name=name, facts=facts)


def rows() -> tuple[Row, ...]:
    student = _engaged("few_step", student="zoo:shapes-4step", steps=4)
    bf16 = _engaged("precision", dtype="bfloat16", components=["transformer", "vae"])
    compiled = _engaged("compile", blocks_compiled=7)
    cache = _engaged("teacache", steps_reused=22, steps_computed=28)
    top = "4-step student + precision"
    found = [
        row("baseline", "baseline", 100, 1, 0.95, 41, 100.0),
        row("25 steps", "steps", 50, 1.98, 0.95, 42, 31),
        row("4 steps", "steps", 8, 12.1, 0.72, 160, 17),
        row("1 step", "steps", 2, 40, 0.05, 900, 11),
        row("4 steps, best solver (unipc)", "steps", 8, 12, 0.8, 110, 19, solver="unipc"),
        row("4-step student", "alone", 4, 23, 0.94, 46, 21, student),
        row("precision", "alone", 100, 1.45, 0.95, 41, 42, bf16),
        row("teacache", "alone", 100, 1.7, 0.93, 47, 24, cache),
        row("compile", "alone", 100, 1.3, 0.95, 41, 98, compiled),
        row(top, "stack", 4, 33, 0.94, 46, 21, student, bf16, grows_from="4-step student", kept=True),
        row(f"{top} + teacache", "stack", 4, 32.5, 0.94, 46, 21, student, bf16, _engaged("teacache", steps_reused=0),
            grows_from=top, kept=False, warnings=("TeaCache reused no step: 4 steps are too far apart.",)),
        row(f"{top} + compile", "stack", 4, 47, 0.94, 46, 21, student, bf16, compiled, grows_from=top, kept=True),
        row("1-step student + precision + compile", "stack", 1, 112, 0.86, 71, 18, bf16, compiled),
    ]  # fmt: skip
    judgements = [judged(one, found) for one in found]
    return tuple(
        one.model_copy(update={"verdict": verdict, "why": why})
        for one, (verdict, why) in zip(found, judgements, strict=True)
    )


def report(**changes: Any) -> Report:
    values: dict[str, Any] = {
        "title": "A made-up report", "model": "zoo:none", "task": "shapes", "created": "2020-01-01T00:00:00+00:00",
        "command": "fewstep demo --out 'my report'", "device": {"device": "cpu", "name": "A made-up CPU", "cores": 2,
        "memory_gb": 8.0, "features": ["bf16", "compile"]}, "versions": {"torch": "0.0"}, "threads": 2, "batch": 16,
        "rounds": 4, "samples": 64, "total_seconds": 240.0, "prompts": PROMPTS, "rows": rows(),
        "skipped": (Skipped(name="quantize", why="This machine has no 8-bit dot product."),),
        "solvers_tried": {"dpmpp_2m": 120.0, "unipc": 110.0, "heun": 190.0},
        "noise": NoiseFloor(baseline_spread=0.02, repeat_psnr=100.0, compiled_psnr=98.0, accuracy_step=1 / 64,
        real_frechet=38.0), }  # fmt: skip
    return Report(**(values | changes))


def pictures(size: int = 16) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {one.name: rng.random((len(PROMPTS), size, size, 3)).astype(np.float32) for one in rows()}
