"""How a training went, in sentences: pure functions of what it wrote."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fewstep.bench.training.read import Run, Stage
from fewstep.distill.watching.guard import Policy

# A measure is judged by the words in its name; one that has none of them is shown and not judged.
LOWER = frozenset({"distance", "frechet", "fid", "kid", "lpips", "error", "loss"})
HIGHER = frozenset({"accuracy", "psnr", "ssim", "clip", "diversity", "validity"})

FALLING = 0.02  # of a loss, from one tenth of the run to the next: more is still falling
CLIPPED = 0.9  # the share of gradients above the clip that is almost all
SLOWER = 1.5  # times the seconds of the first steps
WORSE = 0.02  # of the best measure, by which the last one may be worse before it is said

Side = Literal[-1, 0, 1]


@dataclass(frozen=True)
class Best:
    """The best value of a measure, its step, and the value at the end."""

    measure: str
    step: int
    value: float
    last: float


def side(measure: str) -> Side:
    """1 where higher is better, -1 where lower is, 0 where its name does not say."""
    words = set(re.split(r"[^a-z]+", measure.lower()))
    return -1 if words & LOWER else 1 if words & HIGHER else 0


def measures(stage: Stage) -> list[str]:
    """What was measured, in the order in which it was written."""
    return list(dict.fromkeys(name for line in stage.metrics for name in line if name != "step"))


def best(stage: Stage, measure: str | None = None) -> Best | None:
    """By this measure, or by the first that can be judged; the earliest of equals."""
    judged = [name for name in ([measure] if measure else measures(stage)) if side(name)]
    for name in judged:
        found = [(line["step"], line[name]) for line in stage.metrics if np.isfinite(line.get(name, np.nan))]
        if found:
            step, value = max(found, key=lambda one: side(name) * one[1])
            return Best(name, step, value, found[-1][1])
    return None


def sentences(run: Run) -> list[str]:
    """How each stage stands."""
    return [_told(stage) for stage in run.stages]


def _told(stage: Stage) -> str:
    who = stage.name or "The run"
    stops = [line for line in stage.guard if line["action"] == "stop"]
    if stops:
        text = f"{who} was stopped by its guard. {stops[-1]['reason']}"
    elif stage.total is None:
        text = f"{who} stands at step {stage.step:,}."
    elif stage.step >= stage.total:
        text = f"{who} finished its {stage.total:,} steps in {duration(stage.seconds)}."
    else:
        text = f"{who} stands at step {stage.step:,} of {stage.total:,}, after {duration(stage.seconds)}."
    top = best(stage)
    if top is None:
        return f"{text} No samples were measured."
    end = "the last there is" if top.step == stage.metrics[-1]["step"] else f"the last has {top.last:.4g}"
    return f"{text} By {top.measure} its best step is {top.step:,} with {top.value:.4g}; {end}."


def warnings(stage: Stage) -> list[str]:
    """What a reader should know before using the student."""
    found = [*_of_losses(stage), *_of_gradients(stage), *_of_measures(stage), *_of_guard(stage)]
    seconds = _tenths([line["seconds"] for line in stage.losses])
    if seconds is not None and np.median(seconds[-1]) > SLOWER * np.median(seconds[1]):
        found.append(
            f"A step took {np.median(seconds[-1]):.3g} s at the end and {np.median(seconds[1]):.3g} s at the start."
        )
    return found


def _of_losses(stage: Stage) -> list[str]:
    """Of a student alone: where a critic learns against it, losses say nothing of how good it is."""
    if len(stage.trained) != 1:
        return []
    name = stage.trained[0]
    tenths = _tenths([line["loss"][name] for line in stage.losses])
    if tenths is None:
        return []
    first, before, last = (float(np.median(tenths[i])) for i in (0, -2, -1))
    noise = 3 * np.hypot(*(1.2533 * np.std(tenths[i]) / len(tenths[i]) ** 0.5 for i in (-2, -1)))  # of both medians
    if last >= first:
        return [f"The loss of {name} did not fall: {first:.3g} in the first tenth, {last:.3g} in the last."]
    if before - last > max(FALLING * abs(before), noise):
        share = (before - last) / abs(before)
        return [f"The loss of {name} still fell by {share:.0%} in the last tenth of the steps: more may help."]
    return []


def _of_gradients(stage: Stage) -> list[str]:
    clip, found = stage.settings.get("clip"), []
    for name in stage.trained if clip else ():
        norms = np.array([line["gradient"][name] for line in stage.losses if name in line["gradient"]])
        share = float((norms > clip).mean())
        if share > CLIPPED:
            found.append(
                f"{share:.0%} of the gradients of {name} were clipped to {clip:g}; their median norm is "
                f"{np.median(norms):.3g}: the clip sets the length of each step, not the rate alone."
            )
    return found


def _of_measures(stage: Stage) -> list[str]:
    found = []
    for name in measures(stage):
        top = best(stage, name)
        if top is not None and side(name) * (top.value - top.last) > WORSE * abs(top.value):
            found.append(f"By {name} the student was better at step {top.step:,}, {top.value:.4g}, than at the end, "
                         f"{top.last:.4g}.")  # fmt: skip
    return found


def _of_guard(stage: Stage) -> list[str]:
    found, backs = [], [line["step"] for line in stage.guard if line["action"] == "back"]
    if backs:
        steps = ", ".join(f"{step:,}" for step in backs)
        found.append(f"The guard went back to an earlier step {_times(len(backs))}, from {steps}.")
    last, policy = (stage.guard[-1] if stage.guard else {}), Policy()
    if not last.get("finite", True):
        found.append(f"Samples were no longer finite at step {last['step']:,}.")
    elif last.get("saturation", 0.0) > policy.saturation:
        found.append(f"Saturated: {last['saturation']:.0%} of the last samples are larger than any of the teacher's.")
    elif last.get("within", 1.0) < policy.within:
        found.append(f"Collapsing: the last samples of one prompt differ {last['within']:.2f} times as much as the "
                     "teacher's.")  # fmt: skip
    return found


def _tenths(values: Sequence[float]) -> list[NDArray[np.float64]] | None:
    """Ten equal parts, None where they would hold too little to compare."""
    return np.array_split(np.asarray(values, dtype=np.float64), 10) if len(values) >= 100 else None


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def duration(seconds: float) -> str:
    """42 s, 7 min 20 s, 3 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
