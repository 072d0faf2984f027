"""`Cache`: a gate, a predictor and a scope put on a pipeline, by a preset's name or by hand, or chosen by a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from fewstep.calibrate.calibration import Calibration
from fewstep.calibrate.stack import StackWatch, attentions_of
from fewstep.errors import FewstepError, InputError, bad_value
from fewstep.machine import Machine
from fewstep.models.model import Model
from fewstep.models.streams import SCOPES, Part, block_lists
from fewstep.techniques.base import Engaged, Stage, Technique, strings
from fewstep.techniques.cache.agree import agreed, group_of
from fewstep.techniques.cache.engine import Engine, Rules, fresh_facts, story
from fewstep.techniques.cache.gates import GATES, easycache_learns
from fewstep.techniques.cache.predictors import PREDICTORS
from fewstep.techniques.cache.presets import PRESETS
from fewstep.techniques.cache.tuner import Tuner, Wish


@dataclass(frozen=True)
class Cache(Technique):
    """At steps that change little, a forecast from earlier steps in the place of the denoiser, or of its blocks.

    Attributes:
        preset: one of `PRESETS`, which fills the fields below that are not given; empty: `planned`, ours, unless a gate
            is given.
        gate: when to reuse, one of `GATES`.
        predictor: what stands in, one of `PREDICTORS`.
        scope: for what: the denoiser's `output`, its `blocks`, the `attention` in them, or as `guidance` the branches
            after the first, in whose place the first's output and the difference to it stand.
        front, back: with `blocks` and `attention`: the first and the last blocks always run.
        threshold: the error that may add up before the model runs again, > 0, in the gate's own measure.
        target_speedup: with gate `schedule`: one step in so many is computed, > 1.
        budget: in its place, the quality to keep: `{"psnr": 32}`, in dB, of a sample to its full run. The fewest steps
            that keep it are searched in the first call of each number of steps, on `prompts` that the calibration did
            not see: by all of these, or of 39 and more by as many as lets one expect it of 95% of others. `settled`
            gives the setting that came out, for a recipe.
        prompts: to calibrate on (every other one, 8 at most) and to check a budget on (the others); empty: the first
            call's own, with other noise for the check.
        warmup: the part of the noise levels, from the highest down, that is always computed, in [0, 1).
        longest: steps reused in a row at most.
        limit: the measured relative error of a forecast past which the rest of a request is computed in full.
        calibration: a calibration file of this model; made by the first call, with its own prompt, where it does not
            exist yet. None: the same in memory. One of other weights, precision, guidance or size is not used:
            everything is computed, and a warning says why.
    """

    name: ClassVar[str] = "cache"
    stage: ClassVar[Stage] = Stage.CACHE
    claims: ClassVar[frozenset[str]] = frozenset({"denoiser.forward"})

    preset: str = ""
    gate: str | None = None
    predictor: str | None = None
    scope: str | None = None
    front: int | None = None
    back: int | None = None
    threshold: float | None = None
    target_speedup: float | None = None
    budget: Mapping[str, float] | tuple[tuple[str, float], ...] = ()
    prompts: tuple[str, ...] = ()
    warmup: float | None = None
    longest: int | None = None
    limit: float | None = None
    calibration: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.budget, Mapping):
            object.__setattr__(self, "budget", tuple(self.budget.items()))
        if isinstance(self.prompts, list):
            object.__setattr__(self, "prompts", tuple(self.prompts))
        super().__post_init__()

    @property
    def claimed(self) -> frozenset[str]:
        return self.claims.union(WITHIN.get(self.whole.scope or "", ()))

    def given(self) -> dict[str, Any]:
        values = super().given()
        return {**values, "budget": dict(self.budget)} if "budget" in values else values

    def settled(self, engaged: Engaged) -> Cache:
        """This technique with what its budget chose written down: it searches no more.

        Raises:
            InputError: the budget has chosen nothing yet, before the first call.
        """
        if "target_speedup" not in engaged.facts:
            raise InputError("This cache has settled on nothing yet: call the pipeline once.")
        return replace(self, budget=(), prompts=(), target_speedup=engaged.facts["target_speedup"])

    @property
    def psnr(self) -> float | None:
        """What its budget asks for, in dB."""
        return dict(self.budget).get("psnr")

    @property
    def whole(self) -> Cache:
        """The same with every field filled that its preset fills."""
        named = self.preset or ("" if self.gate else "planned")
        given = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) not in (None, ())}
        base = dict(PRESETS[named].fields) if named else {}
        filled = {**DEFAULTS, **base, **given, "preset": named}
        if GATES[filled["gate"]].front:
            filled.setdefault("front", GATES[filled["gate"]].front)
        return Cache(**{"front": 0, **filled})

    def faults(self) -> list[str]:
        rules = {
            "preset": (self.preset == "" or self.preset in PRESETS, f"one of {', '.join(PRESETS)}"),
            "gate": (self.gate is None or self.gate in GATES, f"one of {', '.join(GATES)}"),
            "predictor": (self.predictor is None or self.predictor in PREDICTORS, f"one of {', '.join(PREDICTORS)}"),
            "scope": (self.scope is None or self.scope in SCOPES, f"one of {', '.join(SCOPES)}"),
            "front": (_whole_number(self.front, 0), "a whole number, at least 0"),
            "back": (_whole_number(self.back, 0), "a whole number, at least 0"),
            "threshold": (_between(self.threshold, 0, math.inf), "a number above 0"),
            "target_speedup": (_between(self.target_speedup, 1, math.inf), "a number above 1"),
            "budget": (_is_budget(self.budget), "{'psnr': a number above 0}"),
            "prompts": (strings(self.prompts), "a list of prompts"),
            "warmup": (self.warmup == 0 or _between(self.warmup, 0, 1), "in [0, 1)"),
            "longest": (_whole_number(self.longest, 1), "a whole number, at least 1"),
            "limit": (_between(self.limit, 0, math.inf), "a number above 0"),
            "calibration": (self.calibration is None or isinstance(self.calibration, str), "the path of a file"),
        }
        return [bad_value(name, "Cache", rule, getattr(self, name)) for name, (ok, rule) in rules.items() if not ok]

    def problems(self, model: Model, machine: Machine) -> list[str]:
        return [*self._misfits(), *self._unfit(model), *self._damaged()]

    def _misfits(self) -> list[str]:
        """Fields that don't go with each other."""
        full = self.whole
        assert full.gate is not None
        gate, found = GATES[full.gate], []
        if full.scope not in gate.scopes:
            found.append(f"Cache's gate '{full.gate}' goes with scope {', '.join(gate.scopes)}. Got '{full.scope}'.")
        if full.front is not None and full.front < gate.front:
            found.append(f"Cache's gate '{full.gate}' needs 'front' to be at least {gate.front}. Got {full.front}.")
        if full.scope not in WITHIN and (self.front or self.back):
            found.append(f"Cache's 'front' and 'back' are about blocks, and its scope is '{full.scope}'.")
        for name in ("target_speedup", "budget"):
            if getattr(self, name) and full.gate != "schedule":
                found.append(f"Cache's '{name}' goes with gate 'schedule', and its gate is '{full.gate}'.")
        if self.target_speedup and self.budget:
            found.append("Cache has a 'target_speedup' and a 'budget': leave one out.")
        if self.threshold and full.gate == "schedule":
            found.append("Cache's gate 'schedule' has no threshold: say 'target_speedup'.")
        if full.gate == "schedule" and full.predictor not in PLANNED:
            found.append(f"Cache's gate 'schedule' plans for {', '.join(PLANNED)}. Got '{full.predictor}'.")
        if full.predictor == "fitted" and full.gate != "schedule":
            found.append("Cache's predictor 'fitted' is fitted to a plan: its gate must be 'schedule'.")
        return found

    def _unfit(self, model: Model) -> list[str]:
        if self.whole.scope not in WITHIN:
            return []
        part, found = self.whole.part, []
        for name, module in model.denoisers.items():
            lists = block_lists(model, name, part)
            kind, blocks = type(module).__name__, sum(len(one.modules) for one in lists)
            if not blocks:
                found.append(f"Cache found no repeated blocks in the {name} ({kind}): its scope must be 'output'.")
            elif not any(one.start < one.stop for one in lists):
                found.append(
                    f"Cache's 'front' and 'back' leave none of the {blocks} blocks of the {name} to skip. "
                    f"Got {part.front} and {part.back}."
                )
            elif self.whole.scope == "attention" and not attentions_of(lists):
                found.append(f"Cache found no attention with a processor in the blocks of the {name} ({kind}).")
        return found

    def _damaged(self) -> list[str]:
        if not self.calibration or not Path(self.calibration).exists():
            return []
        try:
            Calibration.load(self.calibration)
        except FewstepError as error:
            return [str(error)]
        return []

    @property
    def part(self) -> Part:
        assert self.scope is not None
        return Part(self.scope, self.front or 0, self.back or 0)

    def apply(self, model: Model, machine: Machine) -> Engaged:
        full = self.whole
        assert full.gate is not None
        assert full.predictor is not None
        gate, predictor = GATES[full.gate], PREDICTORS[full.predictor]
        facts = {"gate": full.gate, "predictor": full.predictor, "scope": full.scope, **fresh_facts()}
        if full.threshold is not None:
            facts["threshold"] = full.threshold
        rules = Rules(full.threshold or math.inf, full.warmup or 0.0, full.longest, full.limit)
        engine = Engine(gate, predictor, rules, facts, easycache_learns if full.gate == "easycache" else None)
        groups = {name: group_of(one) for name, one in model.denoisers.items()}
        engine.agree = lambda name, decision: agreed(decision, groups[name])
        watch = StackWatch(model, engine, full.part).install()
        wish = Wish(
            full.gate, predictor, full.threshold, full.target_speedup, full.psnr, full.prompts, full.calibration
        )
        tuner = Tuner(wish, model, watch, engine)

        def before_call(call: Mapping[str, Any]) -> None:
            facts.update(story())
            tuner.prepare(call)

        return Engaged(
            self.name, facts, watch.remove, before_call=before_call, reset=watch.forget, warnings=tuner.warnings
        )


# The scopes that need a list of blocks, and what else they claim: a compiled block can't stop to ask whether to attend.
WITHIN: Mapping[str, tuple[str, ...]] = {"blocks": ("block.tokens",), "attention": ("block.tokens", "block.code")}
DEFAULTS: Mapping[str, Any] = {"predictor": "last", "scope": "blocks"}
PLANNED = tuple(name for name, predictor in PREDICTORS.items() if predictor.order < 2)


def _is_budget(value: object) -> bool:
    pairs = value if isinstance(value, tuple) else ((value, None),)
    return all(isinstance(pair, tuple) and pair[0] == "psnr" and bool(pair[1]) and _between(pair[1], 0, math.inf)
               for pair in pairs)  # fmt: skip


def _whole_number(value: object, least: int) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= least)


def _between(value: object, low: float, high: float) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return value is None or (number and low < value < high)  # type: ignore[operator]
