"""`Cache`: a gate, a predictor and a scope put on a pipeline, by a preset's name or by hand, or chosen by a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from fewstep.calibrate.calibration import Calibration
from fewstep.calibrate.run import calibrate, run_quietly
from fewstep.calibrate.signature import Signature, effective_call, signature
from fewstep.calibrate.stack import Part, StackWatch, Visit, block_lists
from fewstep.calibrate.steps import sigma_at
from fewstep.errors import FewstepError, InputError, bad_value
from fewstep.machine import Machine
from fewstep.models.model import Model
from fewstep.techniques.base import Engaged, Stage, Technique, strings
from fewstep.techniques.cache.engine import NOTHING, Engine, Rules, fresh_facts, reused_any, story
from fewstep.techniques.cache.gates import GATES, Known, easycache_learns
from fewstep.techniques.cache.predictors import PREDICTORS
from fewstep.techniques.cache.presets import PRESETS
from fewstep.techniques.cache.schedule import Plan, damages, plans, weights_of
from fewstep.techniques.cache.tune import Samples, search, split

SCOPES = ("output", "blocks")
GAINS = 8  # noise levels at which a calibration for plans measures what errors grow to


@dataclass(frozen=True)
class Cache(Technique):
    """At steps that change little, a forecast from earlier steps in the place of the denoiser, or of its blocks.

    Attributes:
        preset: one of `PRESETS`, which fills the fields below that are not given; empty: `planned`, ours, unless a gate
            is given.
        gate: when to reuse, one of `GATES`.
        predictor: what stands in, one of `PREDICTORS`.
        scope: for what: the denoiser's `output`, or its `blocks`.
        front, back: with `blocks`: the first and the last ones always run.
        threshold: the error that may add up before the model runs again, > 0, in the gate's own measure.
        target_speedup: with gate `schedule`: one step in so many is computed, > 1.
        budget: in its place, the quality to keep: `{"psnr": 32}`, in dB, of every sample to its full run. The fewest
            steps that keep it are searched in the first call of each number of steps, on `prompts` that the calibration
            did not see. `settled` gives the setting that came out, for a recipe.
        prompts: to calibrate on (every other one) and to check a budget on (the others); empty: the first call's own,
            with other noise for the check.
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
        if gate.blocks and full.scope == "output":
            found.append(f"Cache's gate '{full.gate}' looks at the first block: its scope must be 'blocks'.")
        if gate.whole and full.scope == "blocks":
            found.append(f"Cache's gate '{full.gate}' looks at outputs: its scope must be 'output'.")
        if full.front is not None and full.front < gate.front:
            found.append(f"Cache's gate '{full.gate}' needs 'front' to be at least {gate.front}. Got {full.front}.")
        if full.scope == "output" and (self.front or self.back):
            found.append("Cache's 'front' and 'back' are about scope 'blocks', and its scope is 'output'.")
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
        if self.whole.scope == "output":
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
        return Part(self.front or 0, self.back or 0, whole=self.scope == "output")

    def apply(self, model: Model, machine: Machine) -> Engaged:
        full = self.whole
        assert full.gate is not None
        assert full.predictor is not None
        gate, predictor = GATES[full.gate], PREDICTORS[full.predictor]
        facts = {"gate": full.gate, "predictor": full.predictor, "scope": full.scope, **fresh_facts()}
        rules = Rules(full.threshold or math.inf, full.warmup or 0.0, full.longest, full.limit)
        engine = Engine(gate, predictor, rules, facts, easycache_learns if full.gate == "easycache" else None)
        watch = StackWatch(model, engine, full.part).install()
        tuner = Tuner(full, model, watch, engine)

        def before_call(call: Mapping[str, Any]) -> None:
            facts.update(story())
            tuner.prepare(call)

        return Engaged(
            self.name, facts, watch.remove, before_call=before_call, reset=watch.forget, warnings=tuner.warnings
        )


DEFAULTS: Mapping[str, Any] = {"predictor": "last", "scope": "blocks"}
CHECKED = 8  # samples that a budget is checked on where no prompts are given
PLANNED = tuple(name for name, predictor in PREDICTORS.items() if predictor.order < 2)
STANDARD_SPEEDUP = 2.0  # of a plan that is told nothing


Weights = dict[int, tuple[tuple[int, ...], list[float]]]


class Tuner:
    """Finds the calibration that fits a call, and tells the engine what it says."""

    def __init__(self, cache: Cache, model: Model, watch: StackWatch, engine: Engine) -> None:
        self._cache, self._model, self._watch, self._engine = cache, model, watch, engine
        self._made: dict[Signature, Calibration] = {}
        self._last: Signature | None = None
        self._file: tuple[float, Calibration] | None = None  # when it was written, and what it says
        self._known: dict[str, Known] = {}  # of each denoiser, for the noise levels that the scheduler has now
        self._timesteps: Any = None
        self._learned: dict[tuple[Any, ...], Known] = {}  # by all that it depends on, so that it is done once
        self._speedups: dict[tuple[Signature, int], float] = {}

    def prepare(self, call: Mapping[str, Any]) -> None:
        """Before a call: what is known for it; nothing when the file was made on something else."""
        if not self._engine.gate.calibrated:
            return
        wanted = self._last = signature(self._model, call, self._last)
        found = self._saved() or self._made.get(wanted) or self._run(wanted, call)
        differences = wanted.differences(found.signature)
        self._engine.facts["gains"] = len(found.gains)
        self._engine.facts["calibration"] = f"not used: {'; '.join(differences)}" if differences else "fits"
        self._known = {}
        self._engine.known = (lambda visit: NOTHING) if differences else partial(self._knowledge, found)
        if self._cache.psnr is not None and not differences:
            self._keep_budget(wanted, found, call)

    def _knowledge(self, calibration: Calibration, visit: Visit) -> Known:
        scheduler = self._model.pipe.scheduler
        if scheduler.timesteps is not self._timesteps:  # schedulers make new ones for each request
            self._timesteps, self._known = scheduler.timesteps, {}
        if visit.denoiser not in self._known:
            sigmas = sigmas_of(scheduler)
            key = (self._last, visit.denoiser, sigmas, self._cache.target_speedup)
            if key not in self._learned:
                self._learned[key] = self._learn(calibration, visit.denoiser, sigmas)
            self._known[visit.denoiser] = self._learned[key]
            self._engine.facts["expected_error"] = self._learned[key].error
        return self._known[visit.denoiser]

    def _keep_budget(self, wanted: Signature, calibration: Calibration, call: Mapping[str, Any]) -> None:
        """Choose the speed-up for this call's number of steps, unless that was done before."""
        asked = effective_call(self._model, call)
        total = int(asked.get("num_inference_steps") or 0)
        assert self._cache.psnr is not None
        if (wanted, total) not in self._speedups:
            before = {name: value for name, value in self._engine.facts.items() if name.startswith("steps_")}
            tried = search(partial(self._held_out, call, total), total, self._cache.psnr)
            self._speedups[wanted, total] = total / tried[-1].computed
            self._engine.facts.update(before, trials=[[one.computed, round(one.worst, 2)] for one in tried], **story())
        self._choose(self._speedups[wanted, total])

    def _choose(self, speedup: float) -> None:
        self._cache = replace(self._cache, target_speedup=speedup)
        self._engine.facts["target_speedup"] = speedup
        self._timesteps = None

    def _held_out(self, call: Mapping[str, Any], total: int, computed: int | None) -> Samples:
        """The held-out samples with so many steps computed; None: without the cache."""
        prompts: list[Any] = [*split(self._cache.prompts)[1]] or [_first(call.get("prompt"))] * CHECKED
        check = {**_for_prompts(call, prompts), "generator": generators(len(prompts), CHECK_SEED)}
        if computed is None:
            self._watch.remove()
        else:
            self._choose(total / computed)
        try:
            return np.asarray(run_quietly(self._model.pipe, check, output_type="np"))
        finally:
            self._watch.install().forget()

    def _learn(self, calibration: Calibration, denoiser: str, sigmas: tuple[float, ...]) -> Known:
        if self._cache.gate == "schedule":
            plan, weights = planned(calibration, sigmas, self._cache)
            return Known(computed=frozenset(plan.computed), error=plan.error, weights=weights)
        ratios = calibration.ratios(denoiser, sigmas[:-1]) if calibration.of("stack", denoiser) else ()
        return Known(calibration.curve(denoiser), ratios)

    def warnings(self) -> list[str]:
        facts = self._engine.facts
        if str(facts.get("calibration", "fits")).startswith("not used"):
            what = facts["calibration"].removeprefix("not used: ")
            return [
                f"Cache computed every step: {self._cache.calibration} was made on something else, {what}. "
                "Delete the file to make it anew at the next call."
            ]
        if self._watch.unknown:
            kinds = ", ".join(sorted(self._watch.unknown))
            return [f"Cache computed every step: models/families.py does not say what a {kinds} returns."]
        if not facts["last_request"]:
            return ["Cache was never asked: the last call ran none of the denoisers that it is on."]
        if facts["gate"] == "schedule" and not facts["gains"]:
            return [
                "Cache planned as if early errors counted no more than late ones: its calibration has no gains. "
                "'fewstep calibrate' measures them."
            ]
        if not reused_any(facts):
            return [f"Cache reused no step with gate '{facts['gate']}': {self._remedy()}"]
        return []

    def _remedy(self) -> str:
        if self._cache.gate == "never":
            return "that one never does."
        if self._cache.gate == "schedule":
            return "there were too few steps for its 'target_speedup'."
        if not self._engine.facts["foretold"]:
            return "it could foretell nothing, for this model does not give what it looks at."
        return f"a 'threshold' above {self._cache.threshold}, or more steps, would."

    def _saved(self) -> Calibration | None:
        path = self._cache.calibration
        if not path or not Path(path).exists():
            return None
        written = Path(path).stat().st_mtime
        if self._file is None or self._file[0] != written:
            self._file, self._learned = (written, Calibration.load(path)), {}
        return self._file[1]

    def _run(self, wanted: Signature, call: Mapping[str, Any]) -> Calibration:
        self._watch.remove()  # so that the runs are not counted as requests
        try:
            gains = GAINS if self._cache.gate == "schedule" else 0
            if learned := split(self._cache.prompts)[0]:
                call = {**_for_prompts(call, learned), "generator": generators(len(learned), LEARN_SEED)}
            made = self._made[wanted] = calibrate(self._model.pipe, call, gains=gains)
        finally:
            self._watch.install()
        if self._cache.calibration:
            made.save(self._cache.calibration)
        return made


def generators(count: int, seed: int) -> list[torch.Generator]:
    """One for each sample, on the CPU whatever the device: the noise is the same everywhere."""
    return [torch.Generator("cpu").manual_seed(seed + i) for i in range(count)]


def _first(prompt: Any) -> Any:
    return prompt[0] if isinstance(prompt, list) else prompt


LEARN_SEED, CHECK_SEED = 0, 770_001  # of the noise of calibration runs, and of held-out samples


def _for_prompts(call: Mapping[str, Any], prompts: list[Any]) -> dict[str, Any]:
    """The call for other prompts: what belongs to its own, noise and embeddings, is left out."""
    own = ("generator", "latents", "num_images_per_prompt", "num_videos_per_prompt")
    kept = {name: value for name, value in call.items() if name not in own and not name.endswith("_embeds")}
    if isinstance(kept.get("negative_prompt"), list):
        kept["negative_prompt"] = [kept["negative_prompt"][0]] * len(prompts)
    return {**kept, "prompt": prompts}


def planned(calibration: Calibration, sigmas: tuple[float, ...], cache: Cache) -> tuple[Plan, Weights]:
    """The plan for these noise levels (the last one 0), and the weights of a fitted forecast."""
    assert cache.predictor is not None
    predictor, total = PREDICTORS[cache.predictor], len(sigmas) - 1
    levels = torch.tensor(sigmas, dtype=torch.float64)
    outputs = calibration.output(sigmas[:-1])[:total, :total]
    most = max(2, round(total / (cache.target_speedup or STANDARD_SPEEDUP)))
    found = plans(damages(levels, outputs, predictor, calibration.gains_at(sigmas[:-1])), most)
    plan = next((one for one in reversed(found) if len(one.computed) <= most), Plan(tuple(range(total)), 0.0))
    return plan, weights_of(plan, levels, outputs, predictor) if predictor.fitted else {}


def sigmas_of(scheduler: Any) -> tuple[float, ...]:
    """The noise level of each step of the request that a scheduler is set to, and 0 after the last."""
    return (*(sigma_at(scheduler, step) for step in range(len(scheduler.timesteps))), 0.0)


def _is_budget(value: object) -> bool:
    pairs = value if isinstance(value, tuple) else ((value, None),)
    return all(isinstance(pair, tuple) and pair[0] == "psnr" and bool(pair[1]) and _between(pair[1], 0, math.inf)
               for pair in pairs)  # fmt: skip


def _whole_number(value: object, least: int) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= least)


def _between(value: object, low: float, high: float) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return value is None or (number and low < value < high)  # type: ignore[operator]
