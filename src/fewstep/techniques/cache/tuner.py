"""Before a call: the calibration that fits it, what that says of each step, and the speed-up that a budget allows."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fewstep.calibrate.calibration import Calibration
from fewstep.calibrate.run import calibrate, run_quietly, tell
from fewstep.calibrate.signature import Signature, effective_call, signature
from fewstep.calibrate.stack import StackWatch, Visit
from fewstep.calibrate.steps import sigma_at
from fewstep.models.model import Model
from fewstep.techniques.cache.budget import Samples, search, split
from fewstep.techniques.cache.engine import NOTHING, Engine, reused_any, story
from fewstep.techniques.cache.gates import Known
from fewstep.techniques.cache.predictors import Predictor
from fewstep.techniques.cache.schedule import Plan, damages, plans, weights_of

GAINS = 8  # noise levels at which a calibration for plans measures what errors grow to
CHECKED = 8  # samples that a budget is checked on where no prompts are given
AT_ONCE = 8  # of them in one call
FEW = 4  # steps: what a few-step student has
STANDARD_SPEEDUP = 2.0  # of a plan that is told nothing
LEARN_SEED, CHECK_SEED = 0, 770_001  # of the noise of calibration runs, and of held-out samples

Weights = dict[int, tuple[tuple[int, ...], list[float]]]


@dataclass(frozen=True)
class Wish:
    """What a cache's fields ask to be found out, as `Cache` describes them; `psnr` is its budget, in dB."""

    gate: str
    predictor: Predictor
    threshold: float | None
    target_speedup: float | None
    psnr: float | None
    prompts: tuple[str, ...]
    calibration: str | None


class Tuner:
    """Finds the calibration that fits a call, and tells the engine what it says."""

    def __init__(self, wish: Wish, model: Model, watch: StackWatch, engine: Engine) -> None:
        self._wish, self._model, self._watch, self._engine = wish, model, watch, engine
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
        if self._wish.psnr is not None and not differences:
            self._keep_budget(wanted, call)

    def _knowledge(self, calibration: Calibration, visit: Visit) -> Known:
        scheduler = self._model.pipe.scheduler
        if scheduler.timesteps is not self._timesteps:  # schedulers make new ones for each request
            self._timesteps, self._known = scheduler.timesteps, {}
        if visit.denoiser not in self._known:
            sigmas = sigmas_of(scheduler)
            key = (self._last, visit.denoiser, sigmas, self._wish.target_speedup)
            if key not in self._learned:
                self._learned[key] = self._learn(calibration, visit.denoiser, sigmas)
            self._known[visit.denoiser] = self._learned[key]
            self._engine.facts["expected_error"] = self._learned[key].error
        return self._known[visit.denoiser]

    def _keep_budget(self, wanted: Signature, call: Mapping[str, Any]) -> None:
        """Choose the speed-up for this call's number of steps, unless that was done before."""
        asked = effective_call(self._model, call)
        total = int(asked.get("num_inference_steps") or 0)
        assert self._wish.psnr is not None
        if (wanted, total) not in self._speedups:
            before = {name: value for name, value in self._engine.facts.items() if name.startswith("steps_")}
            tried = search(partial(self._held_out, call, total), total, self._wish.psnr)
            self._speedups[wanted, total] = total / tried[-1].computed
            self._engine.facts.update(before, trials=[[one.computed, round(one.kept, 2)] for one in tried], **story())
        self._choose(self._speedups[wanted, total])

    def _choose(self, speedup: float) -> None:
        self._wish = replace(self._wish, target_speedup=speedup)
        self._engine.facts["target_speedup"] = speedup
        self._timesteps = None

    def _held_out(self, call: Mapping[str, Any], total: int, computed: int | None) -> Generator[Samples]:
        """The held-out samples with so many steps computed, a part at a time; None: without the cache."""
        prompts: list[Any] = [*split(self._wish.prompts)[1]] or [_first(call.get("prompt"))] * CHECKED
        noise = generators(len(prompts), CHECK_SEED)
        told = "in full" if computed is None else f"with {computed} of {total} steps computed"
        if computed is None:
            self._watch.remove()
        else:
            self._choose(total / computed)
        try:
            for low in range(0, len(prompts), AT_ONCE):
                tell(f"the budget: held-out samples {low + 1} to {min(low + AT_ONCE, len(prompts))} {told}")
                part = slice(low, low + AT_ONCE)
                check = {**_for_prompts(call, prompts[part]), "generator": noise[part]}
                yield np.asarray(run_quietly(self._model.pipe, check, output_type="np"))
        finally:
            self._watch.install().forget()

    def _learn(self, calibration: Calibration, denoiser: str, sigmas: tuple[float, ...]) -> Known:
        if self._wish.gate == "schedule":
            plan, weights = planned(calibration, sigmas, self._wish)
            return Known(computed=frozenset(plan.computed), error=plan.error, weights=weights)
        ratios = calibration.ratios(denoiser, sigmas[:-1]) if calibration.of("stack", denoiser) else ()
        return Known(calibration.curve(denoiser), ratios)

    def warnings(self) -> list[str]:
        facts = self._engine.facts
        if str(facts.get("calibration", "fits")).startswith("not used"):
            what = facts["calibration"].removeprefix("not used: ")
            return [
                f"Cache computed every step: {self._wish.calibration} was made on something else, {what}. "
                "Delete the file to make it anew at the next call."
            ]
        if self._watch.unknown:
            kinds = ", ".join(sorted(self._watch.unknown))
            return [f"Cache computed every step: models/families.py does not say what a {kinds} returns."]
        if not facts["last_request"] and facts["scope"] == "guidance":
            return ["Cache saw one guidance branch alone, and its scope is those after the first: it spared nothing."]
        if not facts["last_request"]:
            return ["Cache was never asked: the last call ran none of the denoisers that it is on."]
        if facts["gate"] == "schedule" and not facts["gains"]:
            return [
                "Cache planned as if early errors counted no more than late ones: its calibration has no gains. "
                "'fewstep calibrate' measures them."
            ]
        if not reused_any(facts):
            return [f"Cache reused no step with gate '{facts['gate']}': {self._remedy()}"]
        if (steps := max(map(len, facts["last_request"].values()))) <= FEW:
            return [
                f"Cache reused steps of a call of {steps}: where that was measured, on zoo:shapes-4step, the student "
                "of 2 steps is faster, at a lower Fréchet distance (docs/caching.md)."
            ]
        return []

    def _remedy(self) -> str:
        if self._wish.gate == "never":
            return "that one never does."
        if self._wish.gate == "schedule":
            return "there were too few steps for its 'target_speedup'."
        if not self._engine.facts["foretold"]:
            return "it could foretell nothing, for this model does not give what it looks at."
        return f"a 'threshold' above {self._wish.threshold}, or more steps, would."

    def _saved(self) -> Calibration | None:
        path = self._wish.calibration
        if not path or not Path(path).exists():
            return None
        written = Path(path).stat().st_mtime
        if self._file is None or self._file[0] != written:
            self._file, self._learned = (written, Calibration.load(path)), {}
        return self._file[1]

    def _run(self, wanted: Signature, call: Mapping[str, Any]) -> Calibration:
        self._watch.remove()  # so that the runs are not counted as requests
        try:
            gains = GAINS if self._wish.gate == "schedule" else 0
            if learned := split(self._wish.prompts)[0]:
                call = {**_for_prompts(call, learned), "generator": generators(len(learned), LEARN_SEED)}
            made = self._made[wanted] = calibrate(self._model.pipe, call, gains=gains)
        finally:
            self._watch.install()
        if self._wish.calibration:
            made.save(self._wish.calibration)
        return made


def generators(count: int, seed: int) -> list[torch.Generator]:
    """One for each sample, on the CPU whatever the device: the noise is the same everywhere."""
    return [torch.Generator("cpu").manual_seed(seed + i) for i in range(count)]


def _first(prompt: Any) -> Any:
    return prompt[0] if isinstance(prompt, list) else prompt


def _for_prompts(call: Mapping[str, Any], prompts: list[Any]) -> dict[str, Any]:
    """The call for other prompts: what belongs to its own, noise and embeddings, is left out."""
    own = ("generator", "latents", "num_images_per_prompt", "num_videos_per_prompt")
    kept = {name: value for name, value in call.items() if name not in own and not name.endswith("_embeds")}
    if isinstance(kept.get("negative_prompt"), list):
        kept["negative_prompt"] = [kept["negative_prompt"][0]] * len(prompts)
    return {**kept, "prompt": prompts}


def planned(calibration: Calibration, sigmas: tuple[float, ...], wish: Wish) -> tuple[Plan, Weights]:
    """The plan for these noise levels (the last one 0), and the weights of a fitted forecast."""
    predictor, total = wish.predictor, len(sigmas) - 1
    levels = torch.tensor(sigmas, dtype=torch.float64)
    outputs = calibration.output(sigmas[:-1])[:total, :total]
    most = max(2, round(total / (wish.target_speedup or STANDARD_SPEEDUP)))
    found = plans(damages(levels, outputs, predictor, calibration.gains_at(sigmas[:-1])), most)
    plan = next((one for one in reversed(found) if len(one.computed) <= most), Plan(tuple(range(total)), 0.0))
    return plan, weights_of(plan, levels, outputs, predictor) if predictor.fitted else {}


def sigmas_of(scheduler: Any) -> tuple[float, ...]:
    """The noise level of each step of the request that a scheduler is set to, and 0 after the last."""
    return (*(sigma_at(scheduler, step) for step in range(len(scheduler.timesteps))), 0.0)
