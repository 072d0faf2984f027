"""One engine for all caches: it asks the gate, keeps the rules that hold for all, and lets the predictor speak."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fewstep.calibrate.curve import relative_change
from fewstep.calibrate.stack import Kept, Visit
from fewstep.techniques.cache.gates import Gate, Known, Memory
from fewstep.techniques.cache.predictors import Predictor, combined

COMPUTED, REUSED = "#", "."  # one sign a step in `facts["last_request"]`
NOTHING = Known()
MB = 2**20


@dataclass(frozen=True)
class Rules:
    """What holds for every gate.

    Attributes:
        threshold: the error that may add up.
        warmup: the part of the noise levels, from the highest down, at which everything is computed, in [0, 1).
        longest: steps reused in a row at most; None: no limit.
        limit: the measured relative error of a forecast past which the rest of the request is computed in full; None:
            nothing is measured.
    """

    threshold: float
    warmup: float = 0.0
    longest: int | None = None
    limit: float | None = None


@dataclass
class Engine:
    """The policy that `StackWatch` asks. `known` has what a calibration says of each denoiser of the request, `agree`
    makes of a rank's own decision that of all ranks which compute a denoiser together."""

    gate: Gate
    predictor: Predictor
    rules: Rules
    facts: dict[str, Any]
    learn: Callable[[Visit, Memory], None] | None = None
    known: Callable[[Visit], Known] = field(default=lambda visit: NOTHING)
    agree: Callable[[str, bool], bool] = field(default=lambda denoiser, decision: decision)

    @property
    def wants_signal(self) -> bool:
        return self.gate.signal

    @property
    def wants_head(self) -> bool:
        return self.gate.front > 0

    def start(self) -> Memory:
        return Memory()

    def reuse(self, visit: Visit, memory: Memory) -> Kept | None:
        known = self.known(visit)
        foretold = self.gate.foretell(visit, memory, known)
        total = memory.added + foretold if self.gate.adds_up else foretold
        compute = self._must_compute(visit, memory) or not total < self.rules.threshold  # not <: a NaN computes
        if self.gate.looks or self.rules.limit is not None:
            compute = self.agree(visit.denoiser, compute)
        if compute:
            self._note(visit, memory, COMPUTED, total)
            return None
        memory.added, memory.run = total, memory.run + 1
        self._note(visit, memory, REUSED, total)
        return self._forecast(visit, memory, known)

    def _forecast(self, visit: Visit, memory: Memory, known: Known) -> Kept:
        went_with, weights = known.weights.get(visit.step.index, ((), ()))
        if not weights or tuple(memory.steps[-len(went_with) :]) != went_with:  # a rule had other steps computed
            weights = self.predictor.weights(memory.sigmas, visit.step.sigma)
        return combined(weights, memory.kept)

    def computed(self, visit: Visit, memory: Memory) -> None:
        if self.rules.limit is not None and memory.run:
            self._measure(visit, memory)
        if self.learn is not None:
            self.learn(visit, memory)
        memory.notes["head when computed"] = visit.head
        depth = self.predictor.order + 1
        memory.steps = [*memory.steps, visit.step.index][-depth:]
        memory.sigmas = [*memory.sigmas, visit.step.sigma][-depth:]
        memory.kept = [*memory.kept, visit.residuals][-depth:]
        memory.added, memory.run = 0.0, 0
        tensors = [tensor for one in memory.kept for streams in one.values() for tensor in streams.values()]
        self.facts["kept_mb"][_branch(visit)] = round(sum(tensor.nbytes for tensor in tensors) / MB, 3)

    def _must_compute(self, visit: Visit, memory: Memory) -> bool:
        rules, step = self.rules, visit.step
        highest = memory.notes.setdefault("first sigma", step.sigma)
        warm = step.sigma > highest * (1 - rules.warmup)
        tired = rules.longest is not None and memory.run >= rules.longest
        return step.at_an_end or not memory.kept or warm or tired or bool(memory.notes.get("stopped"))

    def _measure(self, visit: Visit, memory: Memory) -> None:
        """What would have been forecast for this computed step, against what it gave: no extra run of the model."""
        assert self.rules.limit is not None
        forecast = combined(self.predictor.weights(memory.sigmas, visit.step.sigma), memory.kept)
        error = max(
            relative_change(forecast[path][name], tensor)
            for path, streams in visit.residuals.items()
            for name, tensor in streams.items()
        )
        memory.notes["stopped"] = memory.notes.get("stopped") or not error <= self.rules.limit
        self._tell(visit, "measured", error)
        self.facts["stopped"] = self.facts["stopped"] or memory.notes["stopped"]

    def _note(self, visit: Visit, memory: Memory, sign: str, error: float) -> None:
        self.facts["steps_reused" if sign == REUSED else "steps_computed"] += 1
        self._tell(visit, "last_request", sign)
        if math.isfinite(error):  # that has added up since the last computed step
            self._tell(visit, "foretold", error)

    def _tell(self, visit: Visit, fact: str, value: Any) -> None:
        """Add to the story of this branch in the last request: a sign a step, or [step, number] pairs."""
        story: dict[str, Any] = self.facts[fact]
        branch = _branch(visit)
        if isinstance(value, str):
            story[branch] = story.get(branch, "") + value
        else:
            story.setdefault(branch, []).append([visit.step.index, value])


def _branch(visit: Visit) -> str:
    return f"{visit.denoiser} branch {visit.branch}"


def fresh_facts() -> dict[str, Any]:
    return {"steps_computed": 0, "steps_reused": 0, **story()}


def story() -> dict[str, Any]:
    """The facts of one request."""
    return {"last_request": {}, "foretold": {}, "measured": {}, "kept_mb": {}, "stopped": False}


def reused_any(facts: Mapping[str, Any]) -> bool:
    return any(REUSED in signs for signs in facts["last_request"].values())
