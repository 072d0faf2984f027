"""Caches on a trained zoo model: our gates and plans, the caches of diffusers and cache-dit, and fewer steps.

    python benchmarks/caches.py [--model zoo:shapes] [--steps 50 28] [--prompts 8] [--rounds 3] [--only WORDS]
    python benchmarks/caches.py --model zoo:moving-shapes --only fewer,planned,regions

Every setting of every method draws the same prompts with the same noise, in turns with the full run; a speed-up is the
median over the rounds of full seconds / its seconds, of whole calls (and beside it of the denoiser alone), calibration
and warm-up not counted. Quality is the PSNR of each picture, or of each whole clip, to that of the full run. For each
quality asked for, each method's fastest setting whose mean keeps it is named. Plans and curves come from one
calibration, made in 50 steps on prompts that are not drawn here. Regions have something to do where most stands still.

cache-dit is an extra: pip install cache-dit. MagCache's ratios are what its own calibration prints; it has none for
this model. diffusers' SeaCache takes video models alone, its FasterCache needs both guidance branches in one call.

Writes out/benchmarks/caches-STEPS.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    SeaCacheConfig,
    TaylorSeerCacheConfig,
)
from rich.console import Console
from rich.progress import track
from rich.table import Table

import fewstep
from fewstep.bench import results
from fewstep.bench.timing import Run, interleaved, measured, speedup
from fewstep.calibrate.calibration import Calibration
from fewstep.calibrate.run import calibrate
from fewstep.machine import keep_freed_memory
from fewstep.models.manifest import manifest_of
from fewstep.techniques.base import Engaged
from fewstep.techniques.cache.budget import psnr_each
from fewstep.techniques.cache.tuner import GAINS, generators
from fewstep.zoo.tasks import task

# Of regions alone, and of regions with a plan around them: share of tokens, all every so many steps, warm-up.
REGIONS = ((0.25, 5, 0.1), (0.125, 5, 0.1), (0.125, 10, 0.1), (0.125, 5, 0.0), (0.25, 3, 0.1))
STACKED = ((0.125, 2, 0.1), (0.125, 3, 0.1), (0.25, 3, 0.1))
MAGCACHE = ((0.03, 2), (0.06, 3), (0.12, 4), (0.24, 5), (0.5, 7), (1.0, 10))  # threshold, steps in a row at most
TARGETS = (40.0, 35.0, 30.0, 25.0)  # dB
LEARNED, LEARN_SEED, DRAW_SEED = 8, 31, 77
CALIBRATION = Path("out/benchmarks/caches-calibration.json")


@dataclass(frozen=True)
class On:
    """Something put on a pipeline: what takes it off again, and what ours tells."""

    take_off: Callable[[], None]
    engaged: Sequence[Engaged] = ()

    @property
    def kept_mb(self) -> float | None:
        """What it keeps between steps, of all branches."""
        return sum(sum(one.facts["kept_mb"].values()) for one in self.engaged) if self.engaged else None


PutOn = Callable[[Any, int], On]  # of (pipeline, steps)


@dataclass(frozen=True)
class Setting:
    """One setting of one method; `steps`: the share of the full run's steps that the call has."""

    method: str
    what: str
    put_on: PutOn
    steps: float = 1.0


@dataclass(frozen=True)
class Pipes:
    """cache-dit leaves its blocks in a pipeline when it is taken off, so it gets one of its own."""

    plain: Any
    cache_dit: Any

    def of(self, setting: Setting) -> Any:
        return self.cache_dit if setting.method.startswith("cache-dit") else self.plain


def nothing(pipe: Any, steps: int) -> On:
    return On(lambda: None)


def ours(fields: Mapping[str, Any], pipe: Any, steps: int) -> On:
    return stacked({"cache": fields}, pipe, steps)


def stacked(recipe: Mapping[str, Mapping[str, Any]], pipe: Any, steps: int) -> On:
    file = {"cache": {"calibration": str(CALIBRATION)}}
    fast = fewstep.accelerate(pipe, [{name: {**file.get(name, {}), **fields}} for name, fields in recipe.items()])
    for one in fast.engaged:
        one.before_call({"num_inference_steps": steps})
    return On(fast.remove, fast.engaged)


def planned(predictor: str, speed: float, pipe: Any, steps: int) -> On:
    return ours({"target_speedup": speed, "predictor": predictor}, pipe, steps)


def regional(share: float, refresh: int, warmup: float, speed: float | None = None) -> tuple[str, PutOn]:
    """Regions, with a plan around them where it has a speed: what they are, and what puts them on."""
    regions = {"share": share, "refresh": refresh, "warmup": warmup}
    what = f"{share:g}, all every {refresh}{', warm-up 0.1' if warmup else ''}"
    if speed is None:
        return what, partial(stacked, {"regions": regions})
    return f"{what}; 1 in {speed:g}", partial(stacked, {"regions": regions, "cache": {"target_speedup": speed}})


def of_diffusers(config: Any, pipe: Any, steps: int) -> On:
    pipe.transformer.enable_cache(config(steps))
    return On(partial(pipe.transformer.disable_cache))


def broadcast(every: int, pipe: Any, steps: int) -> On:
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=every,
        cross_attention_block_skip_range=every,
        spatial_attention_timestep_skip_range=(100, 950),
        cross_attention_timestep_skip_range=(100, 950),
        current_timestep_callback=lambda: pipe.current_timestep,
    )
    return of_diffusers(lambda steps: config, pipe, steps)


def magcache(threshold: float, longest: int, steps: int) -> MagCacheConfig:
    """With the ratios of our calibration, which are those that its own calibration would print."""
    known = Calibration.load(CALIBRATION)
    sigmas = known.of("stack", "transformer")[0].sigmas
    levels = np.interp(np.linspace(0, 1, steps), np.linspace(0, 1, len(sigmas)), sigmas).tolist()
    return MagCacheConfig(
        threshold=threshold,
        max_skip_steps=longest,
        num_inference_steps=steps,
        mag_ratios=known.ratios("transformer", levels),
    )


def cache_dit(threshold: float, front: int, order: int, pipe: Any, steps: int) -> On:
    os.environ.setdefault("CACHE_DIT_ENABLE_LOGGERS_SUPPRESS", "1")
    peer = import_module("cache_dit")
    config = peer.DBCacheConfig(
        num_inference_steps=steps,
        Fn_compute_blocks=front,
        residual_diff_threshold=threshold,
        max_warmup_steps=4,
    )
    calibrator = {"calibrator_config": peer.TaylorSeerCalibratorConfig(taylorseer_order=order)} if order else {}
    peer.enable_cache(pipe, cache_config=config, **calibrator)
    return On(partial(peer.disable_cache, pipe))


def settings() -> list[Setting]:
    found = [Setting("fewer steps", f"{share:.0%}", nothing, share) for share in
             (0.8, 0.6, 0.5, 0.4, 0.32, 0.24, 0.2, 0.16, 0.12)]  # fmt: skip
    for predictor in ("linear", "fitted"):
        found += [
            Setting(f"fewstep planned, {predictor}", f"1 in {speed:g}", partial(planned, predictor, speed))
            for speed in (2.0, 2.5, 3.0, 3.6, 4.2, 5.0, 6.0, 7.2, 8.4)
        ]
    presets = {
        "teacache": (0.1, 0.2, 0.4, 0.8),
        "first_block": (0.04, 0.08, 0.12, 0.15, 0.2, 0.3, 0.5),
        "easycache": (0.05, 0.1, 0.2, 0.4),
        "seacache": (0.1, 0.2, 0.4, 0.8),
    }
    for name, thresholds in presets.items():
        found += [
            Setting(f"fewstep {name}", f"{threshold:g}", partial(ours, {"preset": name, "threshold": threshold}))
            for threshold in thresholds
        ]
    found += [
        Setting("fewstep magcache", f"{t:g}, at most {longest}",
                partial(ours, {"preset": "magcache", "threshold": t, "longest": longest}))
        for t, longest in MAGCACHE
    ]  # fmt: skip
    found += [Setting("fewstep regions", *regional(*one)) for one in REGIONS]
    found += [
        Setting("fewstep regions + planned", *regional(*one, speed))
        for one in STACKED
        for speed in (1.5, 2.0, 3.0, 4.2)
    ]
    found += [
        Setting(f"fewstep {name}", f"at most {n} in a row", partial(ours, {"preset": name, "longest": n}))
        for name in ("pab", "cfg_cache")
        for n in (1, 2, 4)
    ]
    found += [
        Setting("fewstep cfg_cache, linear", f"at most {n} in a row",
                partial(ours, {"preset": "cfg_cache", "predictor": "linear", "longest": n}))
        for n in (1, 2, 4, 8)
    ]  # fmt: skip
    found += [
        Setting("fewstep never (armed, reuses nothing)", scope, partial(ours, {"gate": "never", "scope": scope}))
        for scope in ("output", "blocks")
    ]
    found += [
        Setting("diffusers FirstBlockCache", f"{t:g}",
                partial(of_diffusers, lambda steps, t=t: FirstBlockCacheConfig(threshold=t)))
        for t in (0.02, 0.05, 0.08, 0.12, 0.2, 0.3, 0.5)
    ]  # fmt: skip
    found += [
        Setting("diffusers TaylorSeer", f"every {n}, order {order}",
                partial(of_diffusers, lambda steps, n=n, order=order: TaylorSeerCacheConfig(
                    cache_interval=n, max_order=order, disable_cache_before_step=3,
                    taylor_factors_dtype=torch.float32)))
        for n in (2, 3, 4, 5, 6) for order in (1, 2)
    ]  # fmt: skip
    found += [
        Setting("diffusers MagCache", f"{t:g}, at most {longest}", partial(of_diffusers, partial(magcache, t, longest)))
        for t, longest in MAGCACHE
    ]
    found += [
        Setting("diffusers SeaCache", f"{t:g}, at most {longest}",
                partial(of_diffusers, lambda steps, t=t, longest=longest: SeaCacheConfig(
                    threshold=t, max_consecutive_cached=longest)))
        for t, longest in ((0.05, 2), (0.1, 2), (0.25, 2), (0.5, 4), (1.0, 6))
    ]  # fmt: skip
    found += [Setting("diffusers PAB", f"every {n}", partial(broadcast, n)) for n in (2, 3, 5)]
    if find_spec("cache_dit") is not None:
        found += [
            Setting(f"cache-dit F1{f' Taylor {order}' if order else ''}", f"{t:g}", partial(cache_dit, t, 1, order))
            for order in (0, 1, 2)
            for t in (0.06, 0.1, 0.15, 0.25, 0.4, 0.7)
        ]
    return found


@contextmanager
def on(setting: Setting, pipe: Any, steps: int) -> Iterator[On]:
    put = setting.put_on(pipe, steps)
    try:
        yield put
    finally:
        put.take_off()


@dataclass(frozen=True)
class Drawn:
    run: Run
    images: Any
    kept_mb: float | None


def draw(setting: Setting, pipe: Any, call: Mapping[str, Any], steps: int, number: int) -> Drawn:
    """One call. The setting is put on before the clock starts."""
    samples = len(call["prompt"])
    given = {**call, "num_inference_steps": max(1, round(setting.steps * steps))}
    with warnings.catch_warnings(), on(setting, pipe, steps) as put:
        warnings.simplefilter("ignore")
        noise = generators(samples, DRAW_SEED)
        output, run = measured(lambda: pipe(**given, generator=noise)[0], [pipe.transformer], samples)
        for one in put.engaged:
            one.warnings()  # some facts are told here
        return Drawn(run, output, put.kept_mb)


def measure(pipes: Pipes, steps: int, prompts: int, rounds: int, only: str, name: str) -> list[dict[str, Any]]:
    drawn = [text for text, _ in task(name).prompts(prompts, DRAW_SEED)]
    call = {"prompt": drawn, "output_type": "np"}
    full = Setting("full", "", nothing)
    chosen = [one for one in settings() if any(word in one.method for word in only.split(","))]
    runs: dict[Setting, list[Run]] = {}
    kept: dict[Setting, float | None] = {}
    quality: dict[Setting, tuple[float, ...]] = {}
    failed: dict[Setting, str] = {}
    reference = draw(full, pipes.plain, call, steps, 0).images
    subjects = {str(i): partial(attempt, one, pipes.of(one), call, steps) for i, one in enumerate((full, *chosen))}
    turns = interleaved(subjects, range(rounds))
    for _, name, outcome in track(turns, f"{steps} steps", total=rounds * len(subjects)):
        one = (full, *chosen)[int(name)]
        if isinstance(outcome, str):
            failed[one] = outcome
            continue
        runs.setdefault(one, []).append(outcome.run)
        kept[one] = outcome.kept_mb
        quality[one] = psnr_each(outcome.images, reference)
    for one, why in failed.items():
        Console(stderr=True).print(f"{one.method} {one.what}: {why}", markup=False)
    return [
        {
            "method": one.method,
            "setting": one.what,
            "speedup": speedup([run.seconds for run in runs[full]], [run.seconds for run in runs[one]]),
            "denoiser_speedup": speedup(
                [run.denoiser_seconds for run in runs[full]], [run.denoiser_seconds for run in runs[one]]
            ),
            "kept_mb": kept[one],
            "psnr": statistics.mean(quality[one]),
            "psnr_worst": min(quality[one]),
        }
        for one in chosen
        if one in runs and one not in failed
    ]


def attempt(setting: Setting, pipe: Any, call: Mapping[str, Any], steps: int, number: int) -> Drawn | str:
    """`draw`, or in one line why the method can't."""
    try:
        return draw(setting, pipe, call, steps, number)
    except Exception as error:  # a peer's own, whatever it is: the row says so and the others go on
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def best(rows: list[dict[str, Any]], target: float) -> dict[str, dict[str, Any]]:
    """Each method's fastest setting whose mean PSNR is at least `target`."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        known = found.get(row["method"])
        if row["psnr"] >= target and (known is None or row["speedup"] > known["speedup"]):
            found[row["method"]] = row
    return found


def show(rows: list[dict[str, Any]], steps: int) -> None:
    table = Table("method", *(f"≥ {target:g} dB" for target in TARGETS), title=f"{steps} steps: speed-up at a quality")
    by_target = [best(rows, target) for target in TARGETS]
    for method in dict.fromkeys(row["method"] for row in rows):
        cells = []
        for found in by_target:
            row = found.get(method)
            cells.append(f"{row['speedup']:.2f}× ({row['setting']}; {row['psnr']:.1f})" if row else "–")
        table.add_row(method, *cells)
    Console(width=170).print(table)


def learn(pipe: Any, name: str) -> None:
    prompts = [text for text, _ in task(name).prompts(LEARNED, LEARN_SEED)]
    call = {"prompt": prompts, "generator": generators(LEARNED, LEARN_SEED), "num_inference_steps": 50}
    calibrate(pipe, call, gains=GAINS).save(CALIBRATION)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="zoo:shapes")
    parser.add_argument("--steps", type=int, nargs="+", default=[50, 28])
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="methods whose names hold one of these, with commas between")
    parser.add_argument("--keep-calibration", action="store_true", help="use the file of an earlier run")
    given = parser.parse_args()
    keep_freed_memory()
    pipes = Pipes(fewstep.load(given.model), fewstep.load(given.model))
    for pipe in (pipes.plain, pipes.cache_dit):
        pipe.set_progress_bar_config(disable=True)
    manifest = manifest_of(pipes.plain)
    assert manifest is not None
    if not (given.keep_calibration and CALIBRATION.exists()):
        learn(pipes.plain, manifest.name)
    for steps in given.steps:
        rows = measure(pipes, steps, given.prompts, given.rounds, given.only, manifest.name)
        show(rows, steps)
        print(results.save(f"caches-{steps}", rows))


if __name__ == "__main__":
    main()
