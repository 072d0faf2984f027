"""A made-up run in a folder, for tests of its report: none of its numbers was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.distill.watching import grid

PROMPTS = ("a red ring", "a small striped green square left of a large blue circle on a wavy teal background", "<b>&")


def lines(path: Path, values: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values))


def losses(folder: Path, steps: int, seed: int = 0, names: tuple[str, ...] = ("student",), end: float = 0.1) -> None:
    """Falling to `end` by half of the steps, level after that, with noise and a few spikes."""
    draw = np.random.default_rng(seed)
    found = []
    for step in range(1, steps + 1):
        level = end + (1 - end) * max(0.0, 1 - 2 * step / steps) ** 2
        noise = {name: float(draw.lognormal(0, 0.15)) * (6 if draw.random() < 0.003 else 1) for name in names}
        found.append({
            "step": step,
            "loss": {name: level * noise[name] for name in names},
            "gradient": {name: (0.4 + level) * noise[name] for name in names},
            "rate": 3e-4 * min(1.0, step / 50, 1.02 - step / steps),
            "seconds": float(0.2 * draw.lognormal(0, 0.1)) + (4.0 if step == 1 else 0.0),
        })  # fmt: skip
    lines(folder / "losses.jsonl", found)


def metrics(folder: Path, steps: int, every: int, best: float = 0.7) -> None:
    """Best at a part of the run, then a little worse; and no Fréchet distance at the start."""
    found = []
    for step in range(every, steps + 1, every):
        off = abs(step / steps - best)
        line = {"step": step, "prompt_accuracy": round(0.95 - off**1.5, 4), "distance": 0.02 + off**2, "seed": 3}
        found.append(line if step == every else {**line, "frechet": 40 + 100 * off})
    lines(folder / "metrics.jsonl", found)


def samples(folder: Path, steps: int, every: int, frames: int = 0) -> None:
    """Discs on grey, of colours that settle as the run goes on."""
    for step in (0, *range(every, steps + 1, every)):
        draw, part = np.random.default_rng(3), 1.0 if step == 0 else step / steps
        shape = (len(PROMPTS), 4, frames or 1, 64, 64, 3)
        y, x = np.mgrid[:64, :64] / 64 - 0.5
        disc = (x**2 + y**2 < 0.1)[..., None]
        colours = draw.random((*shape[:3], 1, 1, 3)) * disc + 0.6 * ~disc
        made = (part * colours + (1 - part) * draw.random(shape)) * 255
        title, name = ("the teacher", "teacher") if step == 0 else (f"step {step}", f"step-{step:08d}")
        kept = made.astype(np.uint8) if frames else made.astype(np.uint8)[:, :, 0]
        grid.save(grid.grid_of(title, PROMPTS, kept), folder / "samples" / f"{name}.png")


def verdict(step: int, action: str, reason: str, **numbers: Any) -> dict[str, Any]:
    sound = {"finite": True, "saturation": 0.0, "within": 1.0, "across": 1.0, "score": None}
    return {"step": step, **sound, **numbers, "action": action, "reason": reason, "rate": 1.0}


def settings(folder: Path, step: int, **identity: Any) -> None:
    place = folder / "checkpoints" / f"step-{step:08d}"
    place.mkdir(parents=True)
    (place / "state.json").write_text(json.dumps({"step": step, "identity": identity}))


def whole(folder: Path, steps: int = 1200) -> Path:
    """A run of two rungs: one that finished, one that went back and stands in the middle."""
    job = {"teacher": "zoo:shapes", "steps": 4, "samples": 10000, "prompts": list(map(str, range(40))), "name": None}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "job.json").write_text(json.dumps({**job, "ladder": [{"method": "kd"}, {"method": "dmd2"}]}))
    first, second = folder / "1-kd", folder / "2-dmd2"
    losses(first, steps)
    metrics(first, steps, steps // 8)
    samples(first, steps, steps // 4)
    settings(first, steps, method="kd", steps=steps, clip=1.0, rate=3e-4, loss={"weighting": "velocity", "huber": 0.0})
    losses(second, steps // 2, 1, ("student", "critic"), 0.6)
    metrics(second, steps // 2, steps // 8, 0.2)
    samples(second, steps // 2, steps // 8)
    settings(second, steps // 2, method="dmd2", steps=steps, clip=0.5, rate=3e-4)
    quarter = steps // 4
    lines(second / "guard.jsonl", [
        verdict(quarter // 2, "keep", "the student is sound, and the best so far."),
        verdict(quarter, "go on", "30% of the samples are larger than the teacher's; 1 of 2.", saturation=0.3),
        verdict(quarter + 50, "back", "40% of the samples are larger: back to an earlier step.", saturation=0.4),
        verdict(2 * quarter, "go on", "25% of the samples are larger; 1 of 2 such measurements.", saturation=0.25),
    ])  # fmt: skip
    return folder
