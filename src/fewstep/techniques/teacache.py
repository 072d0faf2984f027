"""TeaCache (2411.19108): steps at which the model's input hardly changed use the blocks' residuals of an earlier step.

The signal is the first block's modulated input. Its relative change from step to step, put through a curve fitted on
this model, foretells the error that reuse would make; the forecasts add up until they reach the threshold, and then the
blocks run again. Unlike the paper's polynomial the curve is monotone, and what it foretells is the error itself, not
the change of the
output: the threshold is the largest relative error of the stack's output that may add up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from fewstep.calibrate.calibration import Calibration
from fewstep.calibrate.run import calibrate
from fewstep.calibrate.signal import change
from fewstep.calibrate.signature import Signature, signature
from fewstep.calibrate.stack import StackWatch, Streams, Visit
from fewstep.errors import FewstepError, bad_value
from fewstep.machine import Machine
from fewstep.models.model import Model
from fewstep.techniques.base import Engaged, Stage, Technique

COMPUTED, REUSED = "#", "."  # one sign a step in `facts["last_request"]`


@dataclass(frozen=True)
class Gate:
    """Whether a step may reuse, and the error that has added up since the blocks last ran."""

    accumulated: float
    reuse: bool


def gate(accumulated: float, forecast: float, threshold: float, *, must_compute: bool) -> Gate:
    """One step of the accumulator: `forecast` ≥ 0 is the error that this step adds. Computing sets it back to 0."""
    total = accumulated + forecast
    if must_compute or not total < threshold:  # not <: a NaN computes
        return Gate(0.0, False)
    return Gate(total, True)


@dataclass
class Memory:
    """What one guidance branch of one request keeps."""

    signal: tuple[Tensor, ...] | None = None
    residuals: Mapping[str, Streams] | None = None
    accumulated: float = 0.0


@dataclass
class Skipper:
    """The policy that `StackWatch` asks. Without curves it computes everything."""

    threshold: float
    facts: dict[str, Any]
    curves: dict[str, Callable[[float], float]] = field(default_factory=dict)

    def start(self) -> Memory:
        return Memory()

    def reuse(self, visit: Visit, state: Memory) -> Mapping[str, Streams] | None:
        assert visit.signal is not None
        previous, state.signal = state.signal, visit.signal
        curve = self.curves.get(visit.denoiser)
        known = curve is not None and previous is not None and state.residuals is not None
        moved = change(visit.signal, previous) if known and previous is not None else math.inf
        forecast = curve(moved) if known and curve is not None else math.inf
        verdict = gate(state.accumulated, forecast, self.threshold, must_compute=not known or visit.step.at_an_end)
        state.accumulated = verdict.accumulated
        self._count(visit, verdict.reuse)
        return state.residuals if verdict.reuse else None

    def computed(self, visit: Visit, state: Memory) -> None:
        state.residuals = visit.residuals

    def _count(self, visit: Visit, reused: bool) -> None:
        self.facts["steps_reused" if reused else "steps_computed"] += 1
        branch = f"{visit.denoiser} branch {visit.branch}"
        picture = self.facts["last_request"]
        picture[branch] = picture.get(branch, "") + (REUSED if reused else COMPUTED)


@dataclass(frozen=True)
class TeaCache(Technique):
    """Skip the blocks of denoising steps that would change little.

    Attributes:
        threshold: the relative error of the stack's output that may add up before the blocks run again; ≥ 0. 0 skips
            nothing.
        calibration: a calibration file of this model. Where the file does not exist yet, the first call makes it, with
            its own prompt, in one extra run. None: the same, kept in memory only. A file that was made on other
            weights, precision, guidance or size is not used: everything is computed, and a warning says why.
    """

    name: ClassVar[str] = "teacache"
    stage: ClassVar[Stage] = Stage.CACHE
    claims: ClassVar[frozenset[str]] = frozenset({"denoiser.forward"})

    threshold: float = 0.1
    calibration: str | None = None

    def faults(self) -> list[str]:
        number = isinstance(self.threshold, int | float) and not isinstance(self.threshold, bool)
        rules = {
            "threshold": (number and 0 <= self.threshold < math.inf, "a number, at least 0"),
            "calibration": (self.calibration is None or isinstance(self.calibration, str), "the path of a file"),
        }
        return [bad_value(name, "TeaCache", rule, getattr(self, name)) for name, (ok, rule) in rules.items() if not ok]

    def problems(self, model: Model, machine: Machine) -> list[str]:
        found = [
            f"TeaCache found no repeated blocks in the {name} ({type(module).__name__}), so there is nothing to skip."
            for name, module in model.denoisers.items()
            if not model.blocks(name)
        ]
        if self.calibration and Path(self.calibration).exists():
            try:
                Calibration.load(self.calibration)
            except FewstepError as error:
                found.append(str(error))
        return found

    def apply(self, model: Model, machine: Machine) -> Engaged:
        facts: dict[str, Any] = {
            "steps_computed": 0,
            "steps_reused": 0,
            "calibration": "not made yet",
            "last_request": {},
        }
        skipper = Skipper(self.threshold, facts)
        watch = StackWatch(model, skipper).install()
        tuner = Tuner(model, watch, skipper, self.calibration)

        def before_call(call: Mapping[str, Any]) -> None:
            tuner.prepare(call)
            facts["last_request"] = {}

        return Engaged(
            self.name, facts, watch.remove, before_call=before_call, reset=watch.forget, warnings=tuner.warnings
        )


class Tuner:
    """Finds the calibration that fits a call: the given file, one made before in this process, or a new run."""

    def __init__(self, model: Model, watch: StackWatch, skipper: Skipper, path: str | None) -> None:
        self._model, self._watch, self._skipper, self._path = model, watch, skipper, path
        self._made: dict[Signature, Calibration] = {}
        self._last: Signature | None = None

    def prepare(self, call: Mapping[str, Any]) -> None:
        """Give the skipper the curves for this call; none when the file was made on something else."""
        wanted = self._last = signature(self._model, call, self._last)
        self._skipper.curves = {}
        found = self._saved() or self._made.get(wanted) or self._run(wanted, call)
        differences = wanted.differences(found.signature)
        self._skipper.facts["calibration"] = f"not used: {'; '.join(differences)}" if differences else "fits"
        if not differences:
            curves = {name: found.curve(name) for name in self._model.denoisers}
            self._skipper.curves = {name: curve for name, curve in curves.items() if curve is not None}

    def warnings(self) -> list[str]:
        facts = self._skipper.facts
        if facts["calibration"] not in ("fits", "not made yet"):
            what = facts["calibration"].removeprefix("not used: ")
            return [
                f"TeaCache computed every step: {self._path} was made on something else, {what}. "
                "Delete the file to make it anew at the next call."
            ]
        if self._watch.unknown:
            kinds = ", ".join(sorted(self._watch.unknown))
            return [f"TeaCache computed every step: models/families.py does not say what a {kinds} returns."]
        if facts["last_request"] and not any(REUSED in steps for steps in facts["last_request"].values()):
            return [
                f"TeaCache reused no step at threshold {self._skipper.threshold}: a higher one, or more steps, would."
            ]
        return []

    def _saved(self) -> Calibration | None:
        return Calibration.load(self._path) if self._path and Path(self._path).exists() else None

    def _run(self, wanted: Signature, call: Mapping[str, Any]) -> Calibration:
        self._watch.remove()  # so that the run is not counted as a request
        try:
            made = self._made[wanted] = calibrate(self._model.pipe, call)
        finally:
            self._watch.install()
        if self._path:
            made.save(self._path)
        return made
